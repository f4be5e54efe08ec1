"""Answers that attack the grader: nothing is executed, nothing outlives its limit, nothing is left behind."""

import os
import time
from pathlib import Path

import pytest
from lightrft_core.data import Prompt, ScoreRequest
from lightrft_core.isolation import IsolatedReward, WorkerSpec
from lightrft_rewards.mathematics import MathConfig

pytest.importorskip("math_verify")

LIMIT = 6.0


def injections(canary: Path) -> list[str]:
    """Text that is code to a grader which evaluates it."""
    touch, shell = f"open('{canary}','w').close()", f"touch {canary}"
    hidden = touch.encode().hex()
    return [
        f"__import__('os').system('{shell}')",
        f"__import__('pathlib').Path('{canary}').touch()",
        f'exec("{touch}")',
        f'eval("{touch}")',
        f"[exec(bytes.fromhex('{hidden}').decode()),1][1]*\\pi",
        f"[eval(bytes.fromhex('{hidden}').decode()),1][1]",
        f"(lambda: {touch})()",
        touch,
        f"1 if {touch} else 2",
        f"().__class__.__base__.__subclasses__()[0]({touch})",
        f"x.__class__.__init__.__globals__['os'].system('{shell}')",
        f"Symbol('x').subs('x', \"{touch}\")",
        f'S("{touch}")',
        f'sympify("{touch}")',
        f"\\text{{{touch}}}",
        f"\\mathrm{{{touch}}}",
        f"\\operatorname{{exec}}({touch})",
        f"$({shell})",
        f"`{shell}`",
        f"; {shell};",
        f"\\input{{|{shell}}}",
        f"\\write18{{{shell}}}",
        f"\\immediate\\write18{{{shell}}}",
        f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}} {touch}",
        f"{{% import os %}}{{{{ os.system('{shell}') }}}}",
        f"cos\nsystem\n(S'{shell}'\ntR.",
        f"!!python/object/apply:os.system ['{shell}']",
        f"f(x) := {touch}",
        f"\\begin{{{touch}}}\\end{{{touch}}}",
        f"Integer(1).__class__.__new__({touch})",
    ]


HEAVY = [
    "9**9**9",
    "9^9^9",
    "9^{9^9}",
    "9^{9^{9^{9^9}}}",
    "10^{10^{10}}",
    "2^{99999999999}",
    "(((9^{999})^{999})^{999})^{999}",
    "((x+1)^{999})^{999}",
    "99999999!",
    "(10^{9})!",
    "((9!)!)!",
    "9!!!!!!",
    "999!^{999!}",
    r"\binom{999999999}{333333333}",
    r"\binom{999}{499}^{999}",
    r"\sum_{i=1}^{10^9} i^2",
    r"\prod_{i=1}^{10^9} i",
    r"\int_0^1 x^x \sin(x^x) dx",
    r"\lim_{x \to 0} \frac{\sin(x^x)}{x^{x^x}}",
    r"\sqrt{\sqrt{\sqrt{2+\sqrt{3+\sqrt{5+\sqrt{7}}}}}}",
    "(" * 5000 + "1" + ")" * 5000,
    "(" * 12 + "1" + ")" * 12,
    "{" * 3000,
    "\\frac{1}{" * 12 + "2" + "}" * 12,
    "\\frac{1}{" * 1000 + "2" + "}" * 1000,
    "\\sqrt" * 1500,
    "1" * 100_000,
    "1" * 250 + "^" + "1" * 3,
    "1+" * 500 + "1",
    "x^" * 1500 + "x",
    "-" * 1000 + "1",
    "x" * 1000,
    "x" * 4000,
    "(x+y+z)^{99}(x-y-z)^{99}",
    "(a+b+c+d+e+f)^{40}",
    r"\begin{pmatrix}" + "1&" * 1000 + "1" + r"\end{pmatrix}",
    r"\log_{10}(10^{10^{10}})",
    r"\sin(10^{999})",
    r"\cos(\cos(\cos(\cos(\cos(\cos(x))))))",
    r"\{" + ",".join(map(str, range(250))) + r"\}",
    "x^5-x-1=0",
    r"\gcd(10^{999},7^{999})",
    "0.(9)",
    "1/0",
    r"\frac{1}{0}",
    r"\infty-\infty",
    "\x00\x01\x02",
    "\ud800",
    "🤔" * 500,
    "𝟒𝟐",
    "٤٢",
    "=" * 3000,
    "<" * 3000,
    "$" * 3000,
    "\\" * 3000,
    "%" * 3000,
    ",".join("1" * 500),
]  # fmt: skip


@pytest.fixture(scope="module")
def reward():
    config = MathConfig(timeout=LIMIT)
    names = ("lightrft_rewards.mathematics:MathReward", "lightrft_rewards.mathematics:MathConfig")
    isolated = IsolatedReward(WorkerSpec("math", *names, config))
    isolated.start()
    yield isolated
    isolated.close()


def test_the_corpus_is_large_enough(tmp_path):
    assert len(injections(tmp_path)) + len(HEAVY) >= 80


@pytest.mark.parametrize("reference", ["4", r"\sqrt{2}+1"])
def test_no_injection_is_executed_and_none_is_right(reward, tmp_path, reference, monkeypatch):
    canary = tmp_path / "canary"
    scores = reward.score([asked(answer, reference) for answer in injections(canary)])
    assert not canary.exists()
    assert not any(score.value for score in scores)


@pytest.mark.parametrize("reference", ["4", r"\sqrt{2}+1"])
def test_no_answer_outlives_the_limit_and_none_is_right(reward, reference):
    slowest = 0.0
    for answer in HEAVY:
        start = time.monotonic()
        (score,) = reward.score([asked(answer, reference)])
        slowest = max(slowest, time.monotonic() - start)
        assert not score.value, answer[:60]
    assert slowest < LIMIT + 1


def test_the_grader_still_grades_after_all_that_and_leaves_no_process(reward):
    assert reward.score([asked(r"\sqrt{50}", r"5\sqrt{2}")])[0].value == 1.0
    reward.close()
    own = os.getpid()
    children = [stat for stat in Path("/proc").glob("[0-9]*/stat") if is_worker_of(own, stat)]
    assert children == []


def asked(answer: str, reference: str) -> ScoreRequest:
    prompt = Prompt("p", ({"role": "user", "content": "?"},), reference=reference)
    return ScoreRequest(f"so \\boxed{{{answer}}}", (), prompt)


def is_worker_of(parent: int, stat: Path) -> bool:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        return int(fields[1]) == parent and b"reward_worker" in (stat.parent / "cmdline").read_bytes()
    except OSError:
        return False
