from lightrft_core.printable import one_line, printable


def test_control_codes_are_spelled_out():
    assert printable("\x1b[2J\x1b]0;owned\x07red\x9b31m") == "\\x1b[2J\\x1b]0;owned\\x07red\\x9b31m"


def test_marks_that_reorder_text_are_spelled_out():
    assert printable("a\u202eb\u2066c") == "a\\u202eb\\u2066c"


def test_a_lone_carriage_return_cannot_overwrite_a_line():
    assert printable("good\rbad\r\nnext") == "good\\x0dbad\nnext"


def test_half_characters_can_be_printed():
    assert printable("\ud800").encode() == b"\\ud800"


def test_ordinary_text_stays():
    text = "Grüße 你好 \U0001f600\n\tx"
    assert printable(text) == text


def test_one_line_is_cut_to_its_width():
    assert one_line("a\nb", 10) == "a\\nb"
    assert one_line("abcdefgh", 5) == "abcd…"
