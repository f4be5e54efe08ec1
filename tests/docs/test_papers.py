"""Every run file of docs/papers.md is whole, resolves, fits its batch rule and passes a dry run."""

import json
import re
from pathlib import Path

import pytest
from lightrft_core.batch_rule import check_batch
from lightrft_core.cli.main import run as lightrft
from lightrft_core.runfile import load_run_file

PAGE = (Path(__file__).resolve().parents[2] / "docs/papers.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
KINDS = ("algorithm", "advantage", "loss", "kl", "sampler", "filter", "shaper", "selector", "correction")
ENTRIES = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]


def title(text):
    """The entry's heading that the block stands under, and the block's number there."""
    entry = next(entry for entry in ENTRIES if text in entry)
    return f"{entry.splitlines()[0]}-{entry[: entry.index(text)].count('```yaml')}"


@pytest.fixture
def folder(tmp_path, monkeypatch, quickstart_model):
    """What the page says that a reader has: a model, and GSM8K's files."""
    (tmp_path / "MODEL_DIR").symlink_to(quickstart_model)
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(8)]
    for name in ("train", "test"):
        (tmp_path / f"gsm8k/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "examples.jsonl").write_text('{"prompt": "What is 1 + 1?", "response": "It is 2."}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", BLOCKS, ids=title)
def test_a_papers_run_file_resolves_and_is_dry_run(text, folder, plugins, capsys):
    (folder / "run.yaml").write_text(text)
    check_batch(load_run_file(folder / "run.yaml", [], plugins), 1)
    assert lightrft(["train", "run.yaml", "--dry-run"]) == 0, capsys.readouterr().err
    assert "dry run: everything was checked, nothing was trained." in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_resolves_and_is_dry_run(recipe, folder, plugins, capsys):
    own_data = [] if recipe.stem == "quickstart" else ["--pretrain", "MODEL_DIR", "--prompt_data", "gsm8k/train.jsonl"]
    assert lightrft(["train", recipe.stem, *own_data, "--dry-run"]) == 0, capsys.readouterr().err
    assert "dry run: everything was checked, nothing was trained." in capsys.readouterr().out


def test_every_compatibility_bundle_is_named(plugins):
    names = [offer.descriptor.name for offer in plugins.offers("algorithm") if "/" in offer.descriptor.name]
    assert len(names) > 15
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_every_component_of_the_algorithms_is_used_by_a_run_file(folder, plugins):
    used = set()
    for text in BLOCKS:
        (folder / "run.yaml").write_text(text)
        run = load_run_file(folder / "run.yaml", [], plugins)
        one = (run.advantage, run.loss, run.kl, run.sampler, run.correction)
        parts = [*one, *run.filters, *run.shapers, *run.selectors]
        used |= {("algorithm", run.algorithm)} | {(part.kind, part.name) for part in parts if part is not None}
    ours = [(kind, offer.descriptor.name) for kind in KINDS for offer in plugins.offers(kind)]
    assert len(ours) > 50
    assert [item for item in ours if item not in used and "/" not in item[1]] == []


@pytest.mark.parametrize("setting", ["refresh_every:", "ema: true", "ptx:", "use: fire", "target:", "dual_clip:"])
def test_a_run_file_uses_what_stands_beside_the_algorithms(setting):
    assert any(setting in text for text in BLOCKS)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.splitlines()[0])
def test_every_entry_names_its_source_and_has_a_run_file(entry):
    assert re.search(r"^\[(arXiv:\d{4}\.\d{5}\]\(https://arxiv\.org/abs/\d{4}\.\d{5}|\S+\]\(https://)", entry, re.M)
    assert "```yaml\n" in entry


def test_links_of_arxiv_lead_to_the_paper_that_they_name():
    for number, target in re.findall(r"\[arXiv:(\S+?)\]\(https://arxiv\.org/abs/(\S+?)\)", PAGE):
        assert number == target


def test_every_paper_that_a_component_names_has_an_entry(plugins):
    offers = [offer for kind in KINDS for offer in plugins.offers(kind)]
    ours = [offer.descriptor for offer in offers if offer.plugin == "lightrft-algos"]
    papers = {paper for component in ours for paper in re.findall(r"arXiv:\S+\b", component.paper)}
    assert len(papers) > 15
    assert [paper for paper in sorted(papers) if f"[{paper}]" not in PAGE] == []
