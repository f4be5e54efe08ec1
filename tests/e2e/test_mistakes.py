"""A user's mistakes, each told in one paragraph: what is wrong, where, and what to do. The tests hold the texts."""

import pytest

RUN_FILE = """
algorithm: grpo
model: {path: ./model}
task: {path: ./train.jsonl}
sampler: {group_size: 4, prompts_per_step: 4, max_new_tokens: 8}
rewards: [exact]
optim: {batch_size: 8}
run: {name: mine, steps: 1}
"""
ROW = '{"prompt": "How many are 2 and 2?", "answer": "4"}\n'


@pytest.fixture
def folder(tmp_path, quickstart_model):
    """A working folder with a run file and data in which nothing is wrong."""
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    (tmp_path / "model").symlink_to(quickstart_model)
    (tmp_path / "train.jsonl").write_text(ROW * 8)
    return tmp_path


@pytest.fixture
def without_torch(tmp_path):
    """An environment in which importing torch, transformers or numpy fails."""
    site = tmp_path / "no-torch"
    site.mkdir()
    for name in ("torch", "transformers", "numpy"):
        (site / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')")
    return {"PYTHONPATH": str(site)}


@pytest.fixture
def edit(folder):
    """Replaces a piece of the run file."""

    def replace(old: str, new: str) -> None:
        text = (folder / "run.yaml").read_text()
        assert old in text
        (folder / "run.yaml").write_text(text.replace(old, new))

    return replace


def told(done) -> str:
    """What the user is told: an error without a traceback, as one line for comparison."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return " ".join(done.stderr.partition("error: ")[2].split())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(
            "optim: {batch_size: 8}",
            "loss: {clip_hihg: 0.3}",
            ["run.yaml:7:8 loss.clip_hihg: no such option. Did you mean 'clip_high'?"],
            id="misspelt_key",
        ),
        pytest.param(
            "optim:", "optimm:", ["run.yaml:7:1 optimm: no section 'optimm'. Did you mean 'optim'?"], id="section"
        ),
        pytest.param("batch_size: 8", "lr: fast", ["run.yaml:7:13 optim.lr: 'fast' is not a number."], id="wrong_type"),
        pytest.param(
            "batch_size: 8",
            "batch_size: 6",
            ["run.yaml:7 optim.batch_size: 6 does not divide a rollout evenly: 4 prompts x 4", "Nearest: 4 or 8."],
            id="impossible_batch_arithmetic",
        ),
        pytest.param(
            "rewards: [exact]",
            "rewards: [{use: python, path: './judge.py:score'}]",
            ["rewards", "there is no file", "judge.py"],
            id="missing_reward_file",
        ),
        pytest.param(
            "rewards: [exact]",
            "rewards: [exakt]",
            ["run.yaml:6:11 rewards[exakt].use: no reward 'exakt'. Did you mean 'exact'?"],
            id="unknown_plugin",
        ),
        pytest.param(
            "./model", "./nowhere", ["run.yaml:3:15 model.path:", "/nowhere does not exist"], id="missing_model"
        ),
        pytest.param(
            "algorithm: grpo",
            "algorithm: gpro",
            ["run.yaml:2:12 algorithm: no algorithm 'gpro'. Did you mean 'grpo'?"],
            id="algorithm",
        ),
        pytest.param("run: {", "run: [", ["run.yaml:8:27: not valid YAML: expected ',' or ']'"], id="broken_yaml"),
    ],
)
def test_a_mistake_in_the_run_file_is_told_without_torch(lightrft, folder, edit, without_torch, old, new, expected):
    edit(old, new)
    message = told(lightrft("train", "run.yaml", env=without_torch))
    assert [part for part in expected if part not in message] == [], message
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["--set", "los.clip_high=3"], ["--set los", "Did you mean 'loss'?"], id="set_unknown_section"),
        pytest.param(["--set", "optim.lr"], ["--set optim.lr", "="], id="set_without_value"),
        pytest.param(["--nubmer_of_things", "3"], ["--nubmer_of_things"], id="unknown_flag"),
        pytest.param(["--n_samples_per_promt", "8"], ["--n_samples_per_prompt"], id="misspelt_flag"),
        pytest.param(["--n_samples_per_prompt", "many"], ["--n_samples_per_prompt", "many"], id="flag_of_wrong_type"),
        pytest.param(["--resume", "nowhere"], ["run.yaml", "nowhere"], id="resume_beside_a_run_file"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_without_torch(lightrft, folder, without_torch, words, expected):
    message = told(lightrft("train", "run.yaml", *words, env=without_torch))
    assert [part for part in expected if part not in message] == [], message
    assert not (folder / "runs").exists()


def test_all_mistakes_are_told_at_once(lightrft, edit, without_torch):
    edit("batch_size: 8", "batch_size: 0")
    edit("rewards: [exact]", "rewards: [exakt]")
    message = told(lightrft("train", "run.yaml", "--nubmer_of_things", "3", env=without_torch))
    for part in ("optim.batch_size", "'exakt'", "--nubmer_of_things", "3 problems, nothing started."):
        assert part in message


def test_a_run_file_that_is_not_there_is_told_with_the_recipes(lightrft, folder, without_torch):
    message = told(lightrft("train", "rn.yaml", env=without_torch))
    assert "rn.yaml" in message
    assert "quickstart" in message


def test_a_recipe_that_is_misspelt_is_told_with_the_nearest(lightrft, without_torch):
    assert "Did you mean 'quickstart'?" in told(lightrft("train", "quickstrat", env=without_torch))


def test_a_run_that_is_not_there_cannot_be_resumed(lightrft, without_torch):
    message = told(lightrft("train", "--resume", "nowhere", env=without_torch))
    assert "there is no run 'nowhere'" in message
    assert "lightrft runs list" in message


def test_an_existing_run_is_never_overwritten(lightrft, folder, without_torch):
    (folder / "runs/mine").mkdir(parents=True)
    (folder / "runs/mine/thesis.txt").write_text("precious")
    message = told(lightrft("train", "run.yaml", env=without_torch))
    assert f"the run folder {folder}/runs/mine exists already and is never overwritten" in message
    assert f"lightrft train --resume {folder}/runs/mine" in message
    assert "--set run.name=..." in message
    assert [path.name for path in (folder / "runs/mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        pytest.param(None, "", ["task.path: there is no file or folder", "/train.jsonl'"], id="missing_file"),
        pytest.param(
            ROW + '{"prompt": "How many', "", ["train.jsonl:2", "Mend the row", "task.on_bad_row: skip"], id="bad_row"
        ),
        pytest.param(ROW + '{"answer": "4"}', "", ["train.jsonl:2", "prompt", "Mend the row"], id="row_without_prompt"),
        pytest.param("", "", ["train.jsonl holds no rows", "task.path"], id="empty_data_set"),
        pytest.param(
            ROW,
            ", max_prompt_tokens: 5",
            ["task.max_prompt_tokens", "all 1 prompts are longer than max_prompt_tokens 5", "Raise it, for example to"],
            id="prompts_longer_than_the_limit",
        ),
        pytest.param(
            ROW,
            ", max_prompt_tokens: 5, long_prompts: error",
            ["task.max_prompt_tokens", "prompt 'train.jsonl:1' has", "Raise the limit"],
            id="prompt_longer_than_the_limit",
        ),
        pytest.param(
            '{"prompt": "How many?"}',
            "",
            ["prompt 'train.jsonl:1' has no reference answer, which reward 'exact' needs", "task.reference_key"],
            id="reference_missing",
        ),
        pytest.param(
            ROW, ", reference_key: anser", ["task.reference_key", "'anser'", "answer, prompt"], id="no_such_column"
        ),
    ],
)
def test_a_mistake_in_the_data_is_told_with_its_file_and_line(forked, folder, edit, rows, options, expected):
    if rows is None:
        (folder / "train.jsonl").unlink()
    else:
        (folder / "train.jsonl").write_text(rows)
    edit("./train.jsonl", f"./train.jsonl{options}")
    message = told(forked("train", "run.yaml"))
    assert [part for part in expected if part not in message] == [], message
