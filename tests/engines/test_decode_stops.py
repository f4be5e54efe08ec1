"""Texts and tokens that end a completion."""

import pytest
from lightrft_core.data import GenerateRequest, Sampling
from lightrft_engines.decode.decoder import Decoder
from lightrft_engines.decode.rows import StopTexts

PIECES = ["a", "b", " c", "ab", "\n", "\n\n", "</", "answer", ">", ""]


def decode(token_ids):
    return "".join(PIECES[token] for token in token_ids)


def first_end(texts, token_ids, decoder=decode):
    """Number of tokens after which the completion ends; None if it goes on."""
    stops = StopTexts(texts, decoder)
    ends = (count for count in range(1, len(token_ids) + 1) if stops.end(token_ids[:count]))
    return next(ends, None)


@pytest.mark.parametrize(
    ("texts", "token_ids", "end"),
    [
        (("</answer>",), [0, 6, 7, 8, 1], 4),
        (("</answer>",), [0, 6, 7, 7, 8], None),
        (("bc",), [1, 2], None),
        (("b c",), [0, 1, 2, 2], 3),
        (("a",), [3, 0], 1),
        (("\n\n",), [0, 4, 4, 0], 3),
        (("\n\n",), [0, 5, 0], 2),
        (("zz", "ba"), [1, 0], 2),
        (("ab",), [0, 9, 9, 1], 4),
    ],
)
def test_a_text_ends_a_completion_at_the_token_that_completes_it(texts, token_ids, end):
    assert first_end(texts, token_ids) == end


def test_a_text_is_found_after_a_long_completion():
    assert first_end(("</answer>",), [0] * 500 + [6, 7, 8]) == 503


def test_characters_made_of_several_byte_tokens_are_found():
    raw = [bytes([byte]) for byte in "né→".encode()]

    def decode_bytes(token_ids):
        return b"".join(raw[token] for token in token_ids).decode(errors="replace")

    assert first_end(("é",), list(range(len(raw))), decode_bytes) == 3
    assert first_end(("→",), list(range(len(raw))), decode_bytes) == 6


def test_tokenizers_that_drop_a_leading_blank_stop_nothing_early():
    def stripped(token_ids):
        return decode(token_ids).removeprefix(" ")

    padding = [1] * 40  # longer than the tail that is looked at
    assert first_end(("bc",), [*padding, 2], stripped) is None
    assert first_end(("b c",), [*padding, 2], stripped) == 41


def letters(token_ids):
    return "".join(chr(33 + token) for token in token_ids)


def test_completions_end_with_the_stop_text_and_keep_it(kit):
    decoder = Decoder(kit.model("qwen2"), decode=letters)
    request = GenerateRequest("p", (5, 9, 2), tuple(range(40)), Sampling(60))
    (plain,) = decoder.generate([request])
    pair = letters(plain[0].token_ids)[10:12]
    stopping = GenerateRequest("p", (5, 9, 2), tuple(range(40)), Sampling(60, stop=(pair,)))
    (stopped,) = decoder.generate([stopping])
    assert any(len(completion.token_ids) < 60 for completion in stopped)
    for full, cut in zip(plain, stopped, strict=True):
        text = letters(full.token_ids)
        assert letters(cut.token_ids) == (text[: text.index(pair) + 2] if pair in text else text)
        assert cut.finish_reason == ("stop" if pair in text else "length")


def test_stop_texts_need_a_way_to_decode(kit):
    with pytest.raises(ValueError, match="given `decode`"):
        Decoder(kit.model("qwen2")).generate([GenerateRequest("p", (1,), (0,), Sampling(2, stop=("x",)))])
