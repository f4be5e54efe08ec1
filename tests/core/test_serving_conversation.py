"""A chat in lines: history, commands, and what happens when an answer fails or is stopped."""

import pytest
from lightrft_core.errors import RunFailed, UserError
from lightrft_core.serving.conversation import Conversation


class Echo:
    """Answers with what it was asked, word for word; some words make it fail."""

    def __init__(self):
        self.asked = []

    def answer(self, messages):
        self.asked.append([(message["role"], message["content"]) for message in messages])
        for word in messages[-1]["content"].split():
            if word == "STOP":
                raise KeyboardInterrupt
            if word == "LONG":
                raise UserError("too long.")
            if word == "DEAD":
                raise RunFailed("the engine died", where="engine")
            yield word


@pytest.fixture
def talk():
    def talk(*lines, system=None):
        echo, told = Echo(), []
        Conversation(echo, told.append, system).run([f"{line}\n" for line in lines])
        return echo.asked, "".join(told)

    return talk


def test_every_turn_is_sent_with_all_before_it(talk):
    asked, told = talk("a", "", "b")
    assert asked == [[("user", "a")], [("user", "a"), ("assistant", "a"), ("user", "b")]]
    assert told == "a\nb\n"


def test_commands_set_the_system_message_forget_and_end(talk):
    asked, _ = talk("a", "/system Be brief.", "b", "/reset", "c", "/system", "d", "/quit", "e", system="Hello.")
    assert [turn[0] for turn in asked] == [
        ("system", "Hello."), ("system", "Be brief."), ("system", "Be brief."), ("user", "c")
    ]  # fmt: skip
    assert [len(turn) for turn in asked] == [2, 4, 2, 3]


def test_a_command_that_does_not_exist_is_told_and_not_sent(talk, capsys):
    asked, _ = talk("/rest", "a")
    assert len(asked) == 1
    assert "there is no /rest. /reset forgets what was said" in capsys.readouterr().err


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(talk, capsys):
    asked, told = talk("one STOP two", "b")
    assert asked[1] == [("user", "one STOP two"), ("assistant", "one"), ("user", "b")]
    assert told == "one\nb\n"
    assert "stopped" in capsys.readouterr().err


def test_a_turn_that_fails_is_told_and_forgotten(talk, capsys):
    asked, _ = talk("LONG", "DEAD", "b")
    assert asked[-1] == [("user", "b")]
    err = capsys.readouterr().err
    assert "too long. /reset forgets what was said." in err
    assert "engine: the engine died" in err


def test_control_characters_of_an_answer_are_spelled_out(talk):
    assert talk("\x1b[31mred")[1] == "\\x1b[31mred\n"
