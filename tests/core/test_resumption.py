"""Going on with a run elsewhere or otherwise: what is noted, and what is refused."""

import pytest
from lightrft_core.checkpoints import Checkpoints
from lightrft_core.errors import UserError
from lightrft_core.resumption import changes, deciding, history, note_changes, require_resumable, told
from lightrft_core.rundir import RunDir


@pytest.fixture
def resumed(load_run, tmp_path):
    """The run's folder, and its run file with other settings."""
    run_dir = RunDir.create(tmp_path / "runs", "one")
    run_dir.write_run_file(load_run(sets=["optim.lr=1e-5"]).to_yaml())

    def again(*sets):
        return changes(run_dir, load_run(sets=["optim.lr=1e-5", *sets]))

    again.run_dir = run_dir
    return again


def test_the_same_settings_are_no_change(resumed):
    assert resumed() == {}


def test_every_changed_setting_is_told_with_both_values(resumed):
    found = resumed("strategy.use=fsdp2", "strategy.shard_size=2", "checkpoint.keep=9", "optim.lr=2e-5")
    assert found == {
        "optim.lr": [1e-5, 2e-5],
        "checkpoint.keep": [3, 9],
        "strategy.use": ["single", "fsdp2"],
        "strategy.shard_size": ["not set", 2],
    }
    assert told(found).startswith("strategy.use single -> fsdp2, optim.lr 1e-05 -> 2e-05, checkpoint.keep 3 -> 9, ")


def test_another_seed_is_refused(resumed):
    with pytest.raises(UserError, match=r"run\.seed: a run that goes on keeps its value, which is 42: the order of"):
        resumed("run.seed=7")


@pytest.fixture
def compared(load_run, tmp_path):
    """What changes between two run files that differ in a line."""
    base = "model: {path: ./model}\ntask: {path: ./train.jsonl}\n"

    def compare(before, after):
        run_dir = RunDir.create(tmp_path / "runs", "two")
        run_dir.write_run_file(load_run(f"algorithm: grpo\n{base}{before}").to_yaml())
        return changes(run_dir, load_run(f"algorithm: grpo\n{base}{after}"))

    return compare


TWO = "rewards: [exact, {use: exact, name: again, find: line}]"
CLIP, OVERLONG = "{use: clip, limit: 1.0}", "{use: overlong, buffer: 9}"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (TWO, "rewards: [exact]", "rewards[again].use exact -> not set"),
        ("rewards: [exact]\nkl: k3", "rewards: [exact]\nkl: null", "kl.use k3 -> not set"),
        (
            f"rewards: [exact]\nshapers: [{CLIP}, {OVERLONG}]",
            f"rewards: [exact]\nshapers: [{OVERLONG}, {CLIP}]",
            "shapers clip, overlong -> overlong, clip",
        ),
        (
            f"rewards: [exact]\nshapers: [{CLIP}, {OVERLONG}]",
            f"rewards: [exact]\nshapers: [{CLIP}]",
            "shapers[overlong].use overlong -> not set",
        ),
        (
            f"rewards: [exact]\nshapers: [{CLIP}, {CLIP.replace('1.0', '2.0')}]",
            f"rewards: [exact]\nshapers: [{CLIP.replace('1.0', '3.0')}, {CLIP.replace('1.0', '2.0')}]",
            "shapers[clip].limit 1.0 -> 3.0",
        ),
        (TWO, "rewards: [{use: exact, name: again, find: line}, exact]", ""),  # a sum has no order
    ],
)
def test_parts_that_come_go_or_change_places_are_told(compared, before, after, said):
    assert told(compared(before, after)) == said


def test_what_decides_the_numbers_is_told_from_where_how_long_and_how_watched_a_run_goes_on(resumed):
    free = ("strategy.use=fsdp2", "run.steps=9", "checkpoint.keep=9", "plots.every=3", "trackers=[]")
    assert deciding(resumed(*free)) == {}
    sets = ("loss.clip_high=0.3", "advantage.eps=0.1", "sampler.temperature=0.5", "optim.epochs=2", "kl=null")
    found = deciding(resumed(*free, *sets, "engine.max_batch_size=9", "shapers=[overlong]"))
    assert [key for key in found if not key.startswith(("shapers[", "kl."))] == [
        "sampler.temperature", "engine.max_batch_size", "advantage.eps", "loss.clip_high", "optim.epochs",
    ]  # fmt: skip
    assert found["shapers[overlong].use"] == ["not set", "overlong"]
    assert found["kl.use"] == ["k3", "not set"]


def test_changes_are_kept_until_the_run_has_gone_on_and_taken_back_where_undone(resumed):
    run_dir = resumed.run_dir
    run_dir.write_manifest({"world_size": 4})
    note_changes(run_dir, {"checkpoint.keep": [3, 9], "optim.lr": [1e-5, 2e-5]})
    note_changes(run_dir, {"checkpoint.keep": [9, 3], "optim.lr": [2e-5, 3e-5]})
    (entry,) = history(run_dir.read_manifest(), 6, 2)
    assert entry.pop("at")
    assert entry == {"step": 6, "changed": {"optim.lr": [1e-5, 3e-5], "processes": [4, 2]}}


def test_the_history_grows(resumed):
    before = {"world_size": 2, "resumed": [{"step": 1}]}
    assert [entry["step"] for entry in history(before, 5, 2)] == [1, 5]
    assert history(before, 5, 2)[-1]["changed"] == {}


def test_a_run_whose_checkpoints_are_weights_alone_is_refused_before_anything_is_written(tmp_path):
    run_dir = RunDir.create(tmp_path, "one")
    require_resumable(run_dir)
    checkpoints = Checkpoints(run_dir.checkpoints, 9)
    for step in (1, 2):
        checkpoints.save(step, None, lambda folder: None)
    with pytest.raises(UserError) as refusal:
        require_resumable(run_dir)
    newest = run_dir.checkpoints / "step_000002"
    assert str(refusal.value) == (
        f"{newest}: holds the policy's weights alone, since checkpoint.resumable is false: no "
        "optimizer state and no state of the run to go on from. Start another run from these weights: "
        f"`lightrft train {run_dir.run_yaml} --set model.path={newest}/hf --set run.name=NEW_NAME`."
    )
    checkpoints.save(3, {"step": 3}, lambda folder: None)
    require_resumable(run_dir)
