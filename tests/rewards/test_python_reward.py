"""A reward that is a function in a file: what it is given, what it may return, what is refused."""

from pathlib import Path

import pytest
from lightrft_core.data import Prompt, ScoreRequest
from lightrft_core.errors import UserError
from lightrft_core.isolation import IsolatedReward, WorkerSpec
from lightrft_rewards.function import PythonConfig, PythonReward
from pydantic import ValidationError


@pytest.fixture
def write(tmp_path: Path):
    def build(source: str, name: str = "reward") -> PythonReward:
        file = tmp_path / f"my_{abs(hash(source))}.py"
        file.write_text(source)
        return PythonReward(PythonConfig(path=f"{file}:{name}"))

    return build


def requests(*texts: str) -> list[ScoreRequest]:
    return [
        ScoreRequest(
            text,
            (1, 2),
            Prompt(f"p{n}", ({"role": "user", "content": "q"},), label="math", reference="4", metadata={"level": n}),
            "length",
        )
        for n, text in enumerate(texts)
    ]


def test_a_function_is_given_lists_by_name(write):
    reward = write(
        "def reward(responses, labels, references, **kw):\n"
        "    assert labels == ['math', 'math'] and references == ['4', '4']\n"
        "    assert kw['prompts'][0] == [{'role': 'user', 'content': 'q'}]\n"
        "    assert kw['metadata'] == [{'level': 0}, {'level': 1}] and kw['prompt_ids'] == ['p0', 'p1']\n"
        "    assert kw['finish_reasons'] == ['length'] * 2 and kw['response_ids'] == [[1, 2]] * 2\n"
        "    return [float(len(text)) for text in responses]\n"
    )
    assert [score.value for score in reward.score(requests("a", "bcd"))] == [1.0, 3.0]


def test_a_function_takes_only_what_it_names(write):
    reward = write("def reward(references, metadata):\n    return [m['level'] for m in metadata]")
    assert [score.value for score in reward.score(requests("a", "b"))] == [0.0, 1.0]


def test_a_pair_of_values_and_parts_gives_named_parts(write):
    reward = write("def reward(responses):\n    return [1.0, 0.5], {'accuracy': [1, 0], 'tone': [0.0, float('nan')]}")
    first, second = reward.score(requests("a", "b"))
    assert (first.value, first.parts) == (1.0, {"accuracy": 1.0, "tone": 0.0})
    assert (second.value, second.reason) == (None, "part 'tone': returned nan")


def test_an_older_lightrft_function_with_tensors_works(write):
    pytest.importorskip("torch")
    reward = write(
        "import torch\n"
        "def reward_fn(model_reward_list, labels, queries, refs, label_map):\n"
        "    accuracy = torch.tensor([float(query == ref) for query, ref in zip(queries, refs)])\n"
        "    return 0.9 * accuracy, {'accuracy': accuracy}\n",
        "reward_fn",
    )
    right, wrong = reward.score(requests("4", "5"))
    assert right.value == pytest.approx(0.9)
    assert (right.parts, wrong.value) == ({"accuracy": 1.0}, 0.0)


def test_a_wrong_number_of_scores_is_unscored(write):
    assert [score.reason for score in write("def reward(responses): return [1.0]").score(requests("a", "b"))] == [
        "returned 1 scores for 2 samples"
    ] * 2


def test_an_unknown_argument_is_refused_by_name(write):
    with pytest.raises(UserError) as caught:
        write("def reward(responses, temperature): return []")
    assert "wants an argument 'temperature', which it cannot be given" in str(caught.value)
    assert "responses, labels, references, prompts" in str(caught.value)
    write("def reward(responses, temperature=1.0): return []")


def test_a_missing_function_or_file_is_refused_by_name(write, tmp_path):
    with pytest.raises(UserError, match="has no function 'reward'"):
        write("def other(): pass")
    with pytest.raises(ValidationError, match=r"there is no file .*gone\.py"):
        PythonConfig(path=f"{tmp_path}/gone.py:reward")
    with pytest.raises(ValidationError, match=r"expected `file\.py:function`"):
        PythonConfig(path="somewhere")


def test_the_name_of_the_function_may_be_left_out(tmp_path):
    (tmp_path / "mine.py").write_text("def reward(responses): return [0.25] * len(responses)")
    assert PythonReward(PythonConfig(path=str(tmp_path / "mine.py"))).score(requests("a"))[0].value == 0.25


def test_an_installed_function_is_named_by_import_path():
    with pytest.raises(UserError, match="wants an argument 'data'"):
        PythonReward(PythonConfig(path="statistics:mode"))


def test_a_file_may_import_its_neighbour_in_its_worker(tmp_path):
    (tmp_path / "neighbour_of_reward.py").write_text("VALUE = 0.75")
    (tmp_path / "mine.py").write_text(
        "from neighbour_of_reward import VALUE\ndef reward(responses): return [VALUE] * len(responses)"
    )
    names = ("lightrft_rewards.function:PythonReward", "lightrft_rewards.function:PythonConfig")
    reward = IsolatedReward(WorkerSpec("mine", *names, PythonConfig(path=f"{tmp_path}/mine.py"), takes_batches=True))
    assert [score.value for score in reward.score(requests("a", "b"))] == [0.75, 0.75]
    reward.close()
