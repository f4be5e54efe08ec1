"""`kl.refresh_every`: when the reference is renewed, what that does to the KL, and over a resume."""

import json

import pytest
from lightrft_core.kl_term import KLTerm
from lightrft_core.protocols import SoloWorld
from lightrft_core.sections import KLSection

from tests.core.real_run import real_run
from tests.core.test_critic_run import numbers

KL = ("kl={use: k3, coef: 0.01, refresh_every: 2}", "optim.lr=1e-3", "selftest.enabled=false", "run.steps=6")


@pytest.mark.parametrize(("every", "due"), [(None, []), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4])])
def test_it_is_renewed_after_every_so_many_steps(every, due):
    renewed = []
    term = KLTerm(lambda new, ref: new, KLSection(refresh_every=every), lambda: renewed.append(step))
    for step in range(1, 7):
        term.end_step(step, None, 8)
    assert renewed == due


def test_the_kl_starts_at_0_again(tmp_path):
    run = real_run(tmp_path, *KL)
    trainer = run.trainer()
    kls = [trainer.step().metrics["train/kl"] for _ in range(6)]
    run.core.close()
    assert kls[0] == kls[2] == kls[4] == pytest.approx(0, abs=1e-9)
    assert min(kls[1], kls[3], kls[5]) > 1e-6


def test_a_resumed_run_keeps_the_renewed_reference(tmp_path):
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    whole, again = (real_run(tmp_path / name, *KL) for name in ("whole", "again"))
    first, second = whole.trainer(), again.trainer()
    for _ in range(3):
        first.step()
    first.save()
    checkpoint = first.parts.checkpoints.newest(SoloWorld())
    expected = [numbers(first.step()) for _ in range(3)]
    again.core.strategy.load(checkpoint.path)
    second.resume(json.loads(json.dumps(checkpoint.state)))
    assert [numbers(second.step()) for _ in range(3)] == expected
    whole.core.close()
    again.core.close()


def test_a_strategy_that_keeps_its_reference_is_refused(run_problems, monkeypatch):
    from dataclasses import replace

    from lightrft_core.plugins import Plugins

    found = Plugins.find

    def without(self, kind, name, *, where):
        component = found(self, kind, name, where=where)
        return replace(component, provides=frozenset()) if kind == "strategy" else component

    monkeypatch.setattr(Plugins, "find", without)
    base = "model: {path: ./model}\ntask: {path: ./train.jsonl}\nrewards: [exact]\n"
    (text,) = run_problems("algorithm: grpo\n" + base + "kl: {refresh_every: 5}\n")
    assert "single keeps its reference. Leave kl.refresh_every out." in text
