import json
from pathlib import Path

import pytest
from lightrft_core.cli.main import run as lightrft
from lightrft_core.metrics_file import metrics_line
from lightrft_core.overrides import parse_set
from lightrft_core.rundir import RunDir
from lightrft_core.runfile import load_run_file

WORDS = ("compare", "run.yaml", "--algorithms", "grpo,dapo", "--seeds", "2", "--dir", "c")
SCORES = {("grpo", 42): (0.2, 0.6), ("dapo", 42): (0.2, 0.8), ("grpo", 43): (0.4, 0.8), ("dapo", 43): (0.4, 0.9)}


@pytest.fixture
def compared(run_folder, plugins):
    """A comparison in `c` whose runs are all done."""
    parent = run_folder / "c"
    for (algorithm, seed), scores in SCORES.items():
        name = f"{algorithm}-seed{seed}"
        sets = [f"algorithm={algorithm}", f"run.seed={seed}", f"run.name={name}", f"run.dir={parent}"]
        run = RunDir.create(parent, name)
        run.write_run_file(load_run_file(Path("run.yaml"), [parse_set(text) for text in sets], plugins).to_yaml())
        lines = [
            metrics_line(step, {"eval/score": s, "seconds/train": 4.0}) for step, s in zip((0, 10), scores, strict=True)
        ]
        run.metrics.write_text("".join(lines))
        run.write_status("done", "", 0)
    return parent


def test_a_table_a_line_for_each_run_and_a_plot(compared, capsys):
    pytest.importorskip("matplotlib")
    assert lightrft(WORDS) == 0
    said = capsys.readouterr()
    assert "2 algorithms x 2 seeds = 4 runs in c/, 4 of them done before" in said.err
    assert "grpo seed 42                 done     0.200 -> 0.600  best 0.600 at step 10  8s" in said.err
    rows = {line.split()[0]: " ".join(line.split()) for line in said.out.splitlines()}
    assert rows["grpo"] == "grpo 2 0.300 ± 1.271 0.700 ± 1.271 0.700 ± 1.271 10 ± 0 8"
    assert "mean over seeds ± 95% interval" in said.out
    assert (compared / "comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_json_has_every_run_and_names_the_plot(compared, capsys):
    pytest.importorskip("matplotlib")
    assert lightrft((*WORDS, "--json", "--plot", "there/x.png", "--level", "0.7")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["level"] == 0.7
    assert found["plot"] == "there/x.png"
    assert Path("there/x.png").exists()
    assert [row["num_reached"] for row in found["algorithms"]] == [1, 2]
    assert found["runs"][3]["points"] == [[0, 0.4], [10, 0.9]]


def test_a_failed_run_is_a_row_and_the_exit_code_1(compared, capsys):
    (compared / "dapo-seed43" / "run.yaml").unlink()
    (compared / "dapo-seed43" / "STATUS").unlink()
    assert lightrft(WORDS) == 1
    said = capsys.readouterr()
    assert "dapo seed 43                 failed" in said.err
    assert "error: 1 of 4 runs failed. The same command tries them again." in said.err
    assert "dapo       1 of 2" in said.out


@pytest.mark.parametrize("seeds", ["none", "0", "1,x"])
def test_seeds_are_a_number_or_a_list(run_folder, capsys, seeds):
    assert lightrft(("compare", "run.yaml", "--algorithms", "grpo", "--seeds", seeds)) == 2
    assert f"--seeds: {seeds!r} is neither a number of seeds nor a list. Give how many (3)" in capsys.readouterr().err


def test_planning_loads_no_heavy_package(compared, lightrft_in):
    done = lightrft_in(compared.parent)(*WORDS, "--plot", "x.png", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "lightrft_core.comparison" in loaded
    assert not loaded & {"torch", "transformers"}
