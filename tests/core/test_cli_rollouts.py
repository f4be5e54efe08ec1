import json

import pytest
import typer
from lightrft_core.cli import rollouts as rollouts_module
from lightrft_core.data import Group, Media, Prompt, Rollout
from lightrft_core.errors import UserError
from lightrft_core.rundir import RunDir
from lightrft_core.store import RolloutStore
from typer.testing import CliRunner

HOSTILE = "\x1b]0;owned\x07\x1b[2J[bold]ok[/bold]\u202e"


@pytest.fixture
def app():
    app = typer.Typer()
    app.callback()(lambda: None)
    rollouts_module.register(app)
    return app


def item(index, text, reward, **fields):
    return Rollout(
        "p1", index, (1, 2), text, (-1.0, -1.0), fields.pop("finish_reason", "stop"), 1, reward=reward, **fields
    )


@pytest.fixture
def run(tmp_path):
    run = RunDir.create(tmp_path, "otter")
    run.write_run_file("run: {}\n")
    store = RolloutStore(run.rollouts)
    media = (Media("image", "cat.png"),)
    prompt = Prompt("p1", ({"role": "user", "content": "2+2?"},), media, label="math", reference="4")
    store.add(0, [Group(prompt, (9,), [item(0, "before", 0.0)])], phase="eval")
    rollouts = [
        item(0, "it is 4", 1.0, scores={"accuracy": 1.0}),
        item(1, HOSTILE, 0.0),
        item(2, "long " * 100 + "the end", None, unscored="timed out", finish_reason="length"),
    ]
    store.add(3, [Group(prompt, (9,), rollouts)])
    store.close()
    return run


def call(app, run, *words):
    command = ["rollouts", "otter", "--dir", str(run.path.parent), *words]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_line_a_rollout_and_how_many_there_are(app, run):
    out = call(app, run)
    lines = out.splitlines()
    assert lines[0].startswith("train step 3")
    assert "p1#0" in lines[0]
    assert "reward 1.000" in lines[0]
    assert lines[0].endswith("it is 4")
    assert "4 of 4 rollouts" in out


def test_the_end_of_a_long_text_is_shown_and_that_it_was_cut_off(app, run):
    line = next(line for line in call(app, run).splitlines() if "unscored" in line)
    assert line.endswith("the end")
    assert "[cut off]" in line


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--step", "3"), 3),
        (("--phase", "eval"), 1),
        (("--min-reward", "0.5"), 1),
        (("--max-reward", "0"), 2),
        (("--text", "IT IS"), 1),
        (("--prompt", "p2"), 0),
        (("--limit", "2"), 2),
    ],
)
def test_searching(app, run, words, count):
    assert f"{count} of " in call(app, run, *words)


def test_full_shows_prompt_reference_scores_and_media(app, run):
    page = call(app, run, "--full", "--min-reward", "1")
    for part in ("-- user\n2+2?", "-- reference\n4", "-- completion\nit is 4", "accuracy 1", "-- image: cat.png"):
        assert part in page


def test_full_says_why_a_rollout_is_unscored(app, run):
    assert "reward unscored: timed out" in call(app, run, "--full", "--text", "the end")


@pytest.mark.parametrize("words", [(), ("--full",), ("--json",)])
def test_what_a_model_wrote_cannot_control_the_terminal(app, run, words):
    out = call(app, run, *words)
    for code in ("\x1b", "\x07", "\u202e"):
        assert code not in out
    assert "[bold]ok[/bold]" in out


def test_json_gives_everything_one_object_a_line(app, run):
    rows = [json.loads(line) for line in call(app, run, "--json", "--order", "reward").splitlines()]
    assert rows[0]["text"] == "it is 4"
    assert rows[0]["token_ids"] == [1, 2]
    assert rows[0]["scores"] == {"accuracy": 1.0}
    assert {row["text"] for row in rows} >= {HOSTILE}


def test_a_run_without_a_store_is_the_users_error(app, tmp_path, run):
    run.rollouts.unlink()
    with pytest.raises(UserError, match=r"no rollout store.*rollouts\.save"):
        call(app, run)
