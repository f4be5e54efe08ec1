"""The KL term: in the reward it is subtracted token by token; the controller follows Ziegler et al."""

import pytest
import torch
from lightrft_core.data import KLOutput
from lightrft_core.kl_term import KLTerm
from lightrft_core.protocols import SoloWorld
from lightrft_core.sections import KLSection


class Rows:
    """The fields of a batch that the KL term touches."""

    mask_BT = torch.tensor([[True, True, False]])
    old_logprobs_BT = torch.tensor([[-1.0, -2.0, -3.0]])
    ref_logprobs_BT = torch.tensor([[-1.5, -1.0, -9.0]])
    token_rewards_BT = None


def difference(logprobs_BT, ref_logprobs_BT):
    return logprobs_BT - ref_logprobs_BT


def test_penalty_is_subtracted_from_trained_tokens_and_its_mean_returned():
    term, rows = KLTerm(difference, KLSection(place="reward", coef=0.1)), Rows()
    assert term.penalise(rows, SoloWorld()) == {"train/kl": pytest.approx((0.5 - 1.0) / 2)}
    assert rows.token_rewards_BT.tolist()[0] == pytest.approx([-0.05, 0.1, 0.0])


def test_the_estimators_metrics_are_means_over_trained_tokens_too():
    def counting(logprobs_BT, ref_logprobs_BT):
        return KLOutput(logprobs_BT - ref_logprobs_BT, {"clamp_fraction": (logprobs_BT < -1.5).float()})

    found = KLTerm(counting, KLSection(place="reward", coef=0.1)).penalise(Rows(), SoloWorld())
    assert found == {"train/kl": pytest.approx(-0.25), "train/kl_clamp_fraction": pytest.approx(0.5)}


def test_fixed_coefficient_never_moves():
    term = KLTerm(difference, KLSection(coef=0.1))
    term.observe(99.0, 1000)
    assert term.coef == 0.1


@pytest.mark.parametrize(("kl", "factor"), [(0.1, 1.0), (0.2, 1 + 0.2 * 0.01), (0.09, 1 - 0.1 * 0.01)])
def test_adaptive_coefficient_follows_the_formula(kl, factor):
    term = KLTerm(difference, KLSection(coef=0.5, target=0.1, horizon=10000))
    term.observe(kl, 100)
    assert term.coef == pytest.approx(0.5 * factor)


def test_state_round_trips():
    term = KLTerm(difference, KLSection(coef=0.5, target=0.1))
    term.observe(1.0, 100)
    other = KLTerm(difference, KLSection(coef=0.5, target=0.1))
    other.load_state_dict(term.state_dict())
    assert other.coef == term.coef
