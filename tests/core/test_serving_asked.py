"""Bodies of requests: what is taken, and how a refusal names the field."""

import pytest
from lightrft_core.data import Sampling
from lightrft_core.serving.asked import ChatAsked, CompletionAsked, Refusal, read


def refusal(kind, body):
    with pytest.raises(Refusal) as caught:
        read(kind, body)
    return caught.value


def test_what_is_asked_becomes_sampling_and_seeds():
    asked = read(
        CompletionAsked,
        {"prompt": "a", "n": 3, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "seed": 7,
         "stop": ["x", "y"], "stop_token_ids": [3]},
    )  # fmt: skip
    assert asked.sampling(8) == Sampling(8, 0.5, 0.9, 0, 0.1, ("x", "y"), (3,))
    first, *others = asked.seeds(0)
    assert first == 7
    assert len({first, *others}) == 3
    assert asked.seeds(0) == asked.seeds(1)


def test_without_a_seed_the_drawn_one_counts():
    asked = read(CompletionAsked, {"prompt": [1], "seed": None})
    assert asked.seeds(5) == (5,)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("ab", ["ab"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [[1], [2, 3]]), ([], [[]])],
)
def test_a_prompt_is_text_or_ids_one_or_many(prompt, prompts):
    assert read(CompletionAsked, {"prompt": prompt}).prompts() == prompts


def test_parts_of_a_message_join():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read(ChatAsked, {"messages": [{"role": "user", "content": parts}]})
    assert [item.plain() for item in asked.messages] == [{"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "n": 10_000}, "n"),
        ({"prompt": "a", "seed": 1 << 63}, "seed"),
        ({"prompt": "a", "stop": ["a", ""]}, "stop"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "nonsense": 1}, "nonsense"),
    ],
)
def test_a_refusal_names_the_field(body, field):
    found = refusal(CompletionAsked, body)
    assert (found.status, found.param) == (400, field)
    assert found.message.startswith(field)


def test_an_image_in_a_chat_is_refused():
    image = {"type": "image_url", "image_url": {"url": "http://x"}}
    found = refusal(ChatAsked, {"messages": [{"role": "user", "content": [image]}]})
    assert (
        found.message == "messages: must be a list of {role, content}; the content is text, or parts of the type `text`"
    )


def test_a_body_that_is_no_object_is_refused():
    assert refusal(CompletionAsked, [1]).message == "the body must be a JSON object"
