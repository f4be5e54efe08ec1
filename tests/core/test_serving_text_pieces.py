"""Text while it comes: with byte tokens, against the decoded whole."""

import pytest
from lightrft_core.serving.text_pieces import TextPieces


def decode(token_ids):
    return bytes(token_ids).decode(errors="replace")


def pieces(text, stops=(), *, keep_stop=False, size=1):
    data = list(text.encode())
    cut = [data[start : start + size] for start in range(0, len(data), size)]
    texts = TextPieces(decode, stops, keep_stop=keep_stop)
    return [texts.push(part, is_last=number == len(cut) - 1) for number, part in enumerate(cut)]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_pieces_join_to_the_whole_and_no_half_character_is_told(size):
    text = "naïve 日本 🙂 end"
    told = pieces(text, size=size)
    assert "".join(told) == text
    assert not any("\ufffd" in piece for piece in told)


def test_what_the_last_tokens_leave_half_is_told_as_the_decoder_tells_it():
    texts = TextPieces(decode)
    assert texts.push([ord("a"), 0xE6], is_last=False) == ""
    assert texts.push([0x97], is_last=True) == "a\ufffd"


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_stop_text_and_what_follows_is_never_told(size):
    assert "".join(pieces("one END two", ["END"], size=size)) == "one "
    assert "".join(pieces("one END two", ["END"], keep_stop=True, size=size)) == "one END"


def test_what_may_become_a_stop_text_waits_until_it_is_certain():
    assert pieces("xENy", ["END"]) == ["x", "", "", "ENy"]


def test_the_stop_text_that_is_complete_first_counts():
    assert "".join(pieces("ab cd", ["cd", "ab c"])) == ""
    assert "".join(pieces("abcdef", ["cd", "bcde"])) == "ab"
