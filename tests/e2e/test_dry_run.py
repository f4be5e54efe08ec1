"""`lightrft train --dry-run`: everything is checked and shown on the user's own rows, and nothing is left behind."""

import pytest

RUN_FILE = """
algorithm: grpo
model: {path: MODEL}
task: {path: ./train.jsonl}
sampler: {group_size: 4, prompts_per_step: 4, max_new_tokens: 8}
rewards: [exact]
optim: {batch_size: 8}
run: {steps: 3}
"""


@pytest.fixture
def shown(forked, tmp_path, quickstart_model) -> str:
    (tmp_path / "run.yaml").write_text(RUN_FILE.replace("MODEL", str(quickstart_model)))
    (tmp_path / "train.jsonl").write_text('{"id": "tea", "prompt": "How many are 2 and 2?", "ground_truth": "4"}\n' * 5)
    done = forked("train", "run.yaml", "--dry-run", env={"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()
    return done.stdout


def test_it_shows_the_plan_and_rows_with_the_trained_tokens_marked_and_a_reward_of_a_real_row(shown):
    plain = _without_colours(shown)
    assert "advantage group_norm + loss clip" in plain
    assert "4 prompts x 4 = 16 samples / 8 per update = 2 updates per rollout" in " ".join(plain.split())
    assert "row tea" in plain
    assert "How many are 2 and 2?" in plain
    assert "reward 1, exact 1" in " ".join(plain.split())
    trained = [piece for piece in shown.split("\x1b[") if piece.startswith("1;4;32m")]
    assert "".join(piece.partition("m")[2] for piece in trained).startswith("4")
    assert "dry run: everything was checked, nothing was trained." in plain


def _without_colours(text: str) -> str:
    return "".join(piece.partition("m")[2] if number else piece for number, piece in enumerate(text.split("\x1b[")))
