import json
import re
from pathlib import Path

import pytest
from lightrft_core.cli.main import run as lightrft
from lightrft_core.manifest import describe, note_origins, origins
from lightrft_core.overrides import parse_set
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import load_run_file


@pytest.fixture
def make(run_folder, plugins):
    """Leaves a run's folder as `lightrft train run.yaml --set ...` does, and changes its manifest."""

    def make(name, *sets, **manifest):
        run_file = load_run_file(Path("run.yaml"), [parse_set(text) for text in sets], plugins)
        run = RunDir.create(run_folder / "runs", name)
        run.write_run_file(run_file.to_yaml())
        note_origins(run_file, run)
        algorithm = plugins.find("algorithm", run_file.algorithm, where="")
        described = describe(run_file, plugins.rows, data={"task": "a" * 64}, world_size=1, folder=run_folder,
                             algorithm=algorithm)  # fmt: skip
        run.write_manifest({**described, "origins": origins(run_file, run), **manifest})
        return run

    return make


def diff(capsys, *words):
    assert lightrft(("runs", "diff", "a", "b", *words)) == 0
    return capsys.readouterr().out


def test_a_setting_is_told_with_both_values_and_who_wrote_them(make, capsys):
    make("a")
    make("b", "loss.clip_high=0.28", "optim.lr=1e-5")
    page = diff(capsys)
    assert "loss.clip_high: 0.2 (algorithm grpo) -> 0.28 (--set)" in page
    assert "optim.lr: 1e-06 (default) -> 1e-05 (--set)" in page
    assert "formulas" not in page
    assert "the same in both: seed, training data, number of processes, versions, plugins, code" in page


def test_formulas_are_told_where_parts_changed_came_or_went(make, capsys):
    make("a")
    make("b", "algorithm=gspo", "filters=[spread]")
    page = diff(capsys)
    assert "loss: clip (L_t = -min(r A, clip(r, 1 - low, 1 + high) A), r = exp(l - l_old)) became gspo (" in page
    assert "kl: k3 (k3 = exp(d) - d - 1, d = l_ref - l) is gone" in page
    assert "filters: spread (keep if max_g - min_g >= min_spread) is new" in page
    assert "algorithm: grpo (run.yaml:1) -> gspo (--set)" in page
    assert "loss.use: clip (algorithm grpo) -> gspo (algorithm gspo)" in page
    assert "loss.dual_clip" not in page and "loss.level" not in page
    assert re.search(r"^  and \d+ defaults of what only one of them has \(--json lists them\)$", page, re.MULTILINE)


def test_json_lists_the_defaults_of_parts_that_only_one_run_has_too(make, capsys):
    make("a")
    make("b", "algorithm=gspo")
    keys = {change["key"] for change in json.loads(diff(capsys, "--json"))["settings"]}
    assert {"loss.dual_clip", "loss.level"} <= keys


def test_data_seed_processes_versions_plugins_and_commit_are_told(make, capsys):
    plugin = {"name": "acme", "distribution": "acme", "version": "2", "state": "ok", "problem": ""}
    make("a", versions={"torch": "2.12", "vllm": "0.28"}, plugins=[])
    make("b", "run.seed=3", data={"task": "b" * 64, "evaluation": "c" * 64}, world_size=2, plugins=[plugin],
         versions={"torch": "2.13"}, git={"commit": "f" * 40, "is_changed": True})  # fmt: skip
    page = diff(capsys)
    for sentence in (
        "the seed was 42, now 3",
        "the training data is not the same (its hash was aaaaaaaaaaaa, now bbbbbbbbbbbb)",
        "only the second has held-out data",
        "the number of processes was 1, now 2",
        "torch 2.12 -> 2.13; vllm 0.28 -> not installed",
        "acme not installed -> 2 (ok)",
        "the folder's git commit was none, now ffffffffffff with uncommitted changes",
    ):
        assert sentence in page


def test_runs_that_do_not_differ_say_so_and_json_is_data(make, capsys):
    make("a")
    make("b")
    assert diff(capsys) == "from a to b\nnothing that is recorded differs\n"
    make("c", "kl.coef=0.5")
    assert lightrft(("runs", "diff", "a", "c", "--json")) == 0
    (change,) = json.loads(capsys.readouterr().out)["settings"]
    assert change == {"key": "kl.coef", "old": 0.001, "new": 0.5, "old_from": "algorithm grpo", "new_from": "--set"}


def test_a_run_that_ended_before_its_manifest_is_told(make, capsys):
    make("a").manifest.unlink()
    make("b", "kl.coef=0.5")
    page = diff(capsys)
    assert "kl.coef: 0.001 -> 0.5 (--set)" in page
    assert "a ended before a manifest was written" in page


def test_a_resumed_run_still_says_where_its_settings_were_written(make, plugins):
    run = make("a", "optim.lr=1e-5")
    again = load_run_file(run.run_yaml, [parse_set("run.steps=7")], plugins)
    kept = origins(again, run)
    assert kept["optim.lr"] == "--set"
    assert kept["loss.clip_high"] == "algorithm grpo"
    assert kept["run.steps"] == "--set"
    assert "optim.eps" not in kept


def test_a_resumed_run_without_a_record_names_its_own_run_file(make, plugins):
    run = make("a")
    run.manifest.unlink()
    again = load_run_file(run.run_yaml, [], plugins)
    assert origins(again, run)["optim.lr"].startswith("runs/a/run.yaml:")
