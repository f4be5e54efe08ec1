import json
import platform
import subprocess
import sys
from importlib import metadata

from lightrft_core.flat_keys import flatten
from lightrft_core.manifest import bundle, commit, describe, versions
from lightrft_core.overrides import parse_set
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import load_run_file

RUN = """
model: {path: some/model}
task: {use: jsonl, path: data.jsonl}
rewards: [{use: exact, weight: 0.5}]
loss: {use: clip}
kl: {use: k3}
"""


def described(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    plugins = Plugins.load()
    run_file = load_run_file(tmp_path / "run.yaml", [parse_set("run.seed=7")], plugins)
    return describe(run_file, plugins.rows, data={"task": "abc"}, world_size=2, folder=tmp_path)


def test_the_manifest_names_versions_seed_data_and_plugins(tmp_path):
    manifest = json.loads(json.dumps(described(tmp_path)))
    assert manifest["seed"] == 7
    assert manifest["world_size"] == 2
    assert manifest["data"] == {"task": "abc"}
    assert manifest["versions"]["python"] == platform.python_version()
    assert manifest["versions"]["lightrft-core"] == metadata.version("lightrft-core")
    states = {row["distribution"]: row["state"] for row in manifest["plugins"]}
    assert states["lightrft-core"] == "ok"


def test_the_manifest_names_every_choice_of_the_formula_and_the_one_place_that_normalises(tmp_path):
    formula = described(tmp_path)["formula"]
    assert formula["normalised_by"] == "advantage group_norm"
    assert formula["loss"]["use"] == "clip"
    assert formula["loss"]["options"]["aggregation"] == "seq_mean_token_mean"
    assert formula["kl"]["options"]["place"] == "loss"
    assert formula["rewards"][0]["options"]["weight"] == 0.5
    assert "correction" not in formula


def test_every_setting_of_every_bundle_is_written_with_its_value(load_run, plugins):
    algorithms = [offer.descriptor for offer in plugins.offers("algorithm")]
    assert {"grpo", "dr_grpo", "dapo"} <= {algorithm.name for algorithm in algorithms}
    for algorithm in algorithms:
        written = json.loads(json.dumps(bundle(algorithm, load_run(sets=[f"algorithm={algorithm.name}"]))))
        assert written["settings"] == flatten(json.loads(json.dumps(algorithm.sections))), algorithm.name
        assert written["changed"] == {}, algorithm.name
        assert written["name"] == algorithm.name
        assert written["formula"] == algorithm.formula


def test_a_setting_that_the_user_overrides_is_written_beside_the_bundles(load_run, plugins):
    algorithm = plugins.find("algorithm", "grpo", where="")
    written = bundle(algorithm, load_run(sets=["loss.clip_high=0.28", "kl=none"]))
    assert written["settings"]["loss.clip_high"] == 0.28
    assert written["settings"]["kl.coef"] == "not set"
    assert written["changed"] == {"loss.clip_high": 0.2, "kl.use": "k3", "kl.place": "loss", "kl.coef": 0.001}


def test_versions_are_read_without_importing_anything():
    code = "import sys; from lightrft_core.manifest import versions; v = versions(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert versions()["python"] == platform.python_version()


def test_the_git_commit_is_recorded_where_there_is_one(tmp_path):
    assert commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    found = commit(tmp_path)
    assert len(found["commit"]) == 40
    assert found["is_changed"] is False
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path)["is_changed"] is True
