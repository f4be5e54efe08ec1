"""Every code block and every command of README and docs is run or read; docs/plugins.md has a test of its own."""

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from lightrft_core.cli.main import run
from lightrft_core.data import Prompt, ScoreRequest
from lightrft_core.flags import FLAGS
from lightrft_core.overrides import Override
from lightrft_core.plugins import Plugins
from lightrft_core.runfile import RunFile, load_run_file
from lightrft_core.sections import RewardSection
from lightrft_core.tasks.jsonl import JsonlConfig, JsonlTask
from lightrft_core.testing.toys import toy_setup
from lightrft_rewards.function import PythonConfig, PythonReward

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("packages/*/README.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(lightrft [^`]+)`")
SHELL = ("bash", "sh", "console")
TESTED_BY = {  # commands that only another place can run
    "pip install uv": ".ci/run",
    "uv sync": ".ci/run",
    "uv run pytest": ".ci/run",
    "uv run ruff check": ".ci/run",
    "uv run ruff format --check": ".ci/run",
    "uv run mypy": ".ci/run",
    "uv run lint-imports": ".ci/run",
    "uv run benchmarks/": "tests/benchmarks",
    "uv run --group bench benchmarks/": "tests/benchmarks",
}


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def block_of(page: str, language: str, start: str) -> str:
    (found,) = [text for text in blocks(ROOT / page, language) if text.lstrip().startswith(start)]
    return found


def shell_commands(page: Path) -> list[str]:
    """Each command of the page's shell blocks, without prompt, comment and what it waits for."""
    lines = [line.removeprefix("$ ") for text in blocks(page, *SHELL) for line in text.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|(?:^|\s)#.*$", line)]
    return [part for part in parts if part]


def lightrft_commands(page: Path) -> list[list[str]]:
    """Words after `lightrft`, of shell blocks and of the running text."""
    lines = [line for line in shell_commands(page) if "lightrft " in line] + INLINE.findall(page.read_text())
    return [shlex.split(line.partition("lightrft ")[2].partition(" > ")[0]) for line in lines]


ALL_COMMANDS = [(page.name, words) for page in PAGES for words in lightrft_commands(page)]


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def ask(*command: str) -> str:
        assert run([*command, "--help"]) == 0, command
        return capsys.readouterr().out

    return ask


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickstart_model: Path) -> Path:
    """What the examples take for granted: a model, data, a reward."""
    for name in ("my-model", "MODEL_DIR", "Qwen/Qwen2.5-0.5B-Instruct"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(quickstart_model)
    rows = "".join(json.dumps({"prompt": f"1+{n}?", "ground_truth": str(n + 1)}) + "\n" for n in range(4))
    for folder in (tmp_path, tmp_path / "data"):
        folder.mkdir(exist_ok=True)
        for name in ("problems", "train", "test", "math", "code"):
            (folder / f"{name}.jsonl").write_text(rows)
    (tmp_path / "gsm8k").mkdir()
    row = json.dumps({"question": "1+1?", "answer": "It is 2.\n#### 2"}) + "\n"
    for name in ("train", "test"):
        (tmp_path / f"gsm8k/{name}.jsonl").write_text(row)
    (tmp_path / "my_reward.py").write_text(block_of("docs/rewards.md", "python", "def reward"))
    (tmp_path / "old_script.sh").write_text("python train.py --pretrain my-model --prompt_data train.jsonl\n")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, folder: Path) -> RunFile:
    """A fragment as a run file: what it leaves out is filled in."""
    rest = {
        "model": "model: {path: ./my-model}\n",
        "task": "task: {path: ./train.jsonl}\n",
        "rewards": "rewards: [exact]\n",
    }
    missing = "".join(line for name, line in rest.items() if not re.search(rf"^{name}:", text, re.MULTILINE))
    (folder / "run.yaml").write_text(text + missing)
    return load_run_file(folder / "run.yaml", [], Plugins.load())


def module_of(text: str, path: Path) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_of_a_language_that_is_tested(page):
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= {
        *SHELL, "python", "yaml", "json", "toml", "text"
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shell_blocks_hold_only_commands_that_are_tested(page):
    others = [line for line in shell_commands(page) if "lightrft " not in line]
    assert [line for line in others if not line.startswith(tuple(TESTED_BY)) and "pip install" not in line] == []


@pytest.mark.parametrize(("page", "words"), ALL_COMMANDS, ids=lambda item: " ".join(item).replace("/", "_")[:60])
def test_every_command_that_is_named_exists_with_its_options(page, words, help_of):
    top = help_of()
    command = [words[0]] if not words[0].startswith("-") else []
    assert not command or re.search(rf"^  {re.escape(command[0])} ", top, re.MULTILINE), f"no command {words[0]}"
    text = help_of(*command)
    if "COMMAND [ARGS]" in text and len(words) > 1 and command and not words[1].startswith("-"):
        names = words[1].split("|")
        assert all(re.search(rf"^  {re.escape(name)} ", text, re.MULTILINE) for name in names), words
        text = help_of(*command, names[0])
    flags = {name for flag in FLAGS for name in (*flag.names.split(), *flag.off.split())}
    for word in words[1:]:
        option = word.partition("=")[0]
        if option.startswith("-"):
            is_flag = option.lstrip("-").replace("-", "_") in flags and "FLAG" in text
            assert is_flag or re.search(rf"(^|[\s,]){re.escape(option)}([\s,]|$)", text), f"{option} of {words}"


@pytest.mark.parametrize(
    ("page", "text"),
    [(page.name, text) for page in PAGES if page.name != "plugins.md" for text in blocks(page, "yaml")],
    ids=lambda item: item.split("\n")[0][:40],
)
def test_every_run_file_loads(page, text, user_folder):
    load(text, user_folder)


def test_the_readme_shows_a_mistake_as_it_is_told(user_folder):
    (shown,) = blocks(ROOT / "README.md", "text")
    text = "algorithm: grpo\nmodel: {path: ./my-model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n\n"
    (user_folder / "run.yaml").write_text(text + "loss:\n  clip_hihg: 0.3\n")
    with pytest.raises(Exception, match="clip_hihg") as caught:
        load_run_file(user_folder / "run.yaml", [], Plugins.load())
    assert shown.strip() in str(caught.value)


def test_the_run_file_page_shows_mistakes_as_they_are_told(user_folder):
    text = "algorithm: grpo\nmodel: {path: ./my-model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n\n"
    (user_folder / "run.yaml").write_text(text + "loss:\n  clip_hihg: 0.3\noptim:\n  temperature: 1\n")
    with pytest.raises(Exception, match="clip_hihg") as caught:
        load_run_file(user_folder / "run.yaml", [Override("kl.horizon", 5, "--kl_horizon")], Plugins.load())
    told = str(caught.value)
    for line in blocks(ROOT / "docs/run-file.md", "text")[0].splitlines():
        assert line in told


def test_the_commands_of_the_run_file_page_run_in_order(user_folder, capsys):
    for line in shell_commands(ROOT / "docs/run-file.md"):
        words = shlex.split(line.partition(" > ")[0])
        assert words[0] == "lightrft"
        assert run(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_readme_command_for_ones_own_training_resolves(user_folder, capsys):
    (line,) = [line for line in shell_commands(ROOT / "README.md") if "gsm8k_grpo" in line]
    words = shlex.split(line)[shlex.split(line).index("lightrft") + 1 :]
    assert run([*words, "--dry-run"]) == 0, capsys.readouterr().err
    assert "example of reward 'gsm8k' -> reward 1" in capsys.readouterr().out


def test_the_rows_of_the_data_page_are_read(tmp_path):
    rows = block_of("docs/data.md", "json", "{")
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/11.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    task = JsonlTask(JsonlConfig(path=str(tmp_path / "train.jsonl")), toy_setup(tmp_path))
    text, image = task.everything()
    assert (text.reference, image.reference, image.label) == ("42", "80", "geo3k_rule")
    assert [media.kind for media in image.media] == ["image"]


def asked(response: str, reference: str) -> ScoreRequest:
    return ScoreRequest(response, (), Prompt("p", ({"role": "user", "content": "?"},), reference=reference))


def test_the_reward_function_of_the_rewards_page_scores(user_folder):
    reward = PythonReward(PythonConfig(path=str(user_folder / "my_reward.py:reward")))
    right, wrong = reward.score([asked("it is 42", "42"), asked("it is 4", "42")])
    assert (right.value, wrong.value) == (pytest.approx(1 - 0.008), pytest.approx(-0.007))


def test_the_reward_class_of_the_rewards_page_scores(tmp_path):
    module = module_of(block_of("docs/rewards.md", "python", "from collections.abc"), tmp_path / "short_reward.py")
    (score,) = module.ShortReward(RewardSection()).score([asked("abc", "42")])
    assert score.value == 0.25


def test_the_hook_of_the_core_readme_yields_a_component(tmp_path):
    text = block_of("packages/lightrft-core/README.md", "python", "from lightrft_core")
    assert [component.name for component in module_of(text, tmp_path / "acme.py").lightrft_losses()] == ["acme"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []
