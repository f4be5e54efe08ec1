"""What `lightrft train` prints at the end: figures once, samples as text and never as markup or control codes."""

import pytest
from lightrft_core.cli.summary import print_summary
from lightrft_core.data import Group, Prompt, Rollout
from lightrft_core.rundir import RunDir
from lightrft_core.store import RolloutStore

BEFORE = {"eval/score": 0.25, "eval/accuracy": 0.25, "eval/reward": 0.25, "eval/length": 20.0, "eval/num_scored": 8.0}
AFTER = {"eval/score": 0.75, "eval/accuracy": 0.75, "eval/reward": 0.75, "eval/length": 18.5, "eval/num_scored": 8.0}


@pytest.fixture
def shown(tmp_path, capsys, monkeypatch):
    """Prints the summary of a run with these answers, by step; returns what was printed."""
    monkeypatch.setenv("COLUMNS", "150")

    def show(evaluations, answers=(), plots=()):
        run_dir = RunDir.create(tmp_path, "one")
        for name in plots:
            (run_dir.plots / name).write_bytes(b"png")
        if answers:
            store = RolloutStore(run_dir.rollouts)
            for step, prompt, text, reward in answers:
                rollout = Rollout(prompt, 0, (1,), text, (-1.0,), "stop", step, reward=reward)
                message = {"role": "user", "content": f"question {prompt}"}
                store.add(step, [Group(Prompt(prompt, (message,)), (1,), [rollout])], phase="eval")
            store.close()
        print_summary(evaluations, run_dir)
        return capsys.readouterr().out

    return show


def test_figures_before_and_after_with_their_change(shown):
    text = shown({0: BEFORE, 10: {**BEFORE, "eval/score": 0.5}, 40: AFTER})
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in text.splitlines() if line.count("│") > 3}
    assert [cell.strip() for cell in rows["eval/score"]] == ["0.250", "0.750", "+0.500"]
    assert [cell.strip() for cell in rows["eval/length"]] == ["20.000", "18.500", "-1.500"]
    assert "step 0" in text
    assert "step 40" in text
    assert "step 10" not in text


def test_one_figure_under_several_names_and_what_did_not_change_are_not_repeated(shown):
    text = shown({0: BEFORE, 40: AFTER})
    assert "eval/accuracy" not in text
    assert "eval/reward" not in text
    assert "eval/num_scored" not in text


def test_the_greatest_change_comes_first_and_three_prompts_at_most(shown):
    answers = [(0, name, f"old {name}", old) for name, old, _ in ROWS] + [
        (9, name, f"new {name}", new) for name, _, new in ROWS
    ]
    text = shown({0: BEFORE, 9: AFTER}, answers)
    assert text.index("question better") < text.index("question same")
    assert "question worse" not in text
    assert "old better" in text
    assert "new better" in text
    assert "[1]" in text


ROWS = [("worse", 1.0, 0.0), ("same", 1.0, 1.0), ("better", 0.0, 1.0), ("other", 0.0, 1.0)]


def test_a_prompt_with_several_samples_is_shown_once(shown):
    answers = [(step, "often", f"{step} {index}", float(step > 0)) for step in (0, 9) for index in range(4)]
    assert shown({0: BEFORE, 9: AFTER}, answers).count("question often") == 1


def test_what_the_model_wrote_is_neither_markup_nor_control_codes(shown):
    nasty = "[red]bold[/red] \x1b[2J\x1b]0;title\x07 \u202egnp [/]"
    text = shown({0: BEFORE, 9: AFTER}, [(0, "p[/]", "[bold]", 0.0), (9, "p[/]", nasty, 1.0)])
    assert "[red]bold[/red]" in text
    assert "question p[/]" in text
    assert "\\x1b[2J" in text
    assert "\\u202e" in text
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "\x07" not in text


def test_an_unscored_answer_does_not_end_the_summary(shown):
    text = shown({0: BEFORE, 9: AFTER}, [(0, "p", "", None), (9, "p", "good", 1.0)])
    assert "[unscored]" in text


def test_plots_and_the_next_commands_close_it(shown, tmp_path):
    text = shown({}, plots=("curves.png",))
    assert f"plot  {tmp_path / 'one' / 'plots' / 'curves.png'}" in text
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[lines.index("next:") + 1 :]] == [
        ["lightrft", "rollouts"],
        ["lightrft", "runs"],
        ["lightrft", "export"],
    ]


def test_a_single_evaluation_makes_no_table(shown):
    assert "held-out" not in shown({0: BEFORE})
