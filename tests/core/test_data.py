"""Rollouts, groups and batches keep their promises."""

import pytest
import torch
from lightrft_core.data import Batch, Group, Prompt, Rollout, seed_for


def rollout(index, reward=None, **scores):
    return Rollout("p", index, (1, 2), "x", (-0.1, -0.2), "stop", 0, reward=reward, scores=scores)


def batch_of(prompt_ids):
    rows = len(prompt_ids)
    return Batch(
        prompt_ids=tuple(prompt_ids),
        prompt_token_ids=tuple((row,) for row in range(rows)),
        completion_ids_BT=torch.arange(rows * 2).reshape(rows, 2),
        mask_BT=torch.ones(rows, 2, dtype=torch.bool),
        lengths_B=torch.full((rows,), 2),
        group_B=torch.zeros(rows, dtype=torch.long),
        rewards_B=torch.arange(rows, dtype=torch.float32),
        scored_B=torch.ones(rows, dtype=torch.bool),
        engine_logprobs_BT=torch.zeros(rows, 2),
    )


def test_rollout_refuses_uneven_lengths():
    with pytest.raises(ValueError, match="p#0: 2 token ids"):
        Rollout("p", 0, (1, 2), "x", (-0.1,), "stop", 0)


def test_group_rewards_leave_unscored_out_and_keep_zero():
    group = Group(Prompt("p", ()), (1,), [rollout(0, 0.0, accuracy=0.0), rollout(1), rollout(2, 1.0)])
    assert group.rewards() == [0.0, 1.0]
    assert group.rewards("accuracy") == [0.0]


def test_rows_pick_tensors_and_tuples_alike():
    picked = batch_of("abc").rows([2, 0])
    assert picked.prompt_ids == ("c", "a")
    assert picked.prompt_token_ids == ((2,), (0,))
    assert picked.completion_ids_BT.tolist() == [[4, 5], [0, 1]]
    assert picked.temperature == 1.0
    assert picked.advantages_BT is None


def test_minibatches_hold_every_row_once_an_epoch_in_the_order_drawn():
    parts = list(batch_of("aabbccdd").minibatches(2, epochs=2, seed=3))
    assert [part.rewards_B.tolist() for part in parts[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(value for part in parts[2:] for value in part.rewards_B.tolist()) == list(range(8))


def test_later_epochs_change_the_order_of_the_parts():
    orders = {
        tuple(part.rewards_B[0].item() for part in batch_of("abcdef").minibatches(3, epochs=2, seed=seed))[3:]
        for seed in range(20)
    }
    assert len(orders) > 1


def test_the_cuts_of_two_ranks_together_are_the_cut_of_one():
    prompts = "abcdefgh"
    one = [set(part.prompt_ids) for part in batch_of(prompts).minibatches(2, 1, 0)]
    ranks = [[set(part.prompt_ids) for part in batch_of(prompts[rank::2]).minibatches(2, 1, 0)] for rank in (0, 1)]
    assert one == [ranks[0][part] | ranks[1][part] for part in (0, 1)]


def test_one_minibatch_keeps_the_order():
    assert next(batch_of("cab").minibatches(1, 1, 0)).prompt_ids == ("c", "a", "b")


def test_seeds_differ_by_every_part_and_are_stable():
    assert seed_for(1, 2, "p", 3) == seed_for(1, 2, "p", 3)
    assert len({seed_for(1, 2, "p", 3), seed_for(2, 2, "p", 3), seed_for(1, 3, "p", 3), seed_for(1, 2, "p", 4)}) == 4
    assert 0 <= seed_for(0) < 2**63


def test_cut_off_completions_are_marked_row_by_row(tmp_path):
    from lightrft_core.testing.rollouts import group
    from lightrft_core.testing.toys import toy_setup

    item = group("p", [1.0, 1.0, 1.0])
    for rollout, reason in zip(item.rollouts, ("stop", "length", "abort"), strict=True):
        rollout.finish_reason = reason
    batch = toy_setup(tmp_path).require_model().collate([item])
    assert list(batch.truncated_B) == [False, True, True]
    assert list(batch.rows([2, 0]).truncated_B) == [True, False]
