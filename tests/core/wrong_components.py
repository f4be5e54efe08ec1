"""Components with the faults that the conformance kit exists to find. Each is wrong in one way."""

from lightrft_core.data import LossOutput
from lightrft_core.protocols import Advantages, Corrected


def reduced_per_micro_batch(inputs, *, config):
    """Divides by the tokens of this micro-batch."""
    ratio_BT = (inputs.logprobs_BT - inputs.old_logprobs_BT).clamp(-20, 20).exp()
    return LossOutput(-ratio_BT * inputs.advantages_BT / inputs.mask_BT.sum().clamp(min=1))


def reduced_to_a_scalar(inputs, *, config):
    """Takes the mean itself."""
    return LossOutput(-(inputs.logprobs_BT * inputs.advantages_BT).mean())


def divided_by_padded_length(inputs, *, config):
    """Divides by T, padding included."""
    ratio_BT = (inputs.logprobs_BT - inputs.old_logprobs_BT).clamp(-20, 20).exp()
    return LossOutput(-ratio_BT * inputs.advantages_BT / inputs.mask_BT.shape[1])


def sequence_ratio_over_padding(inputs, *, config):
    """A sequence ratio whose mean runs over padding too."""
    ratio_B = (inputs.logprobs_BT - inputs.old_logprobs_BT).mean(-1).clamp(-20, 20).exp()
    return LossOutput(-ratio_B * inputs.advantages_BT.sum(-1))


def whitened_inside(inputs, *, config):
    """Normalises advantages over the rows it happens to see."""
    kept = inputs.advantages_BT[inputs.mask_BT]
    centred_BT = inputs.advantages_BT - (kept.mean() if kept.numel() else 0.0)
    return LossOutput(-inputs.logprobs_BT * centred_BT)


def unclamped_ratio(inputs, *, config):
    """Overflows for large log-ratios."""
    return LossOutput(-(inputs.logprobs_BT - inputs.old_logprobs_BT).exp() * inputs.advantages_BT)


def broken_promise(inputs, *, config):
    """Pulls towards the old policy even without an advantage."""
    gap_BT = inputs.logprobs_BT - inputs.old_logprobs_BT
    return LossOutput(gap_BT**2 - inputs.logprobs_BT * inputs.advantages_BT)


def changes_its_inputs(inputs, *, config):
    """Zeroes advantages in place."""
    values_BT = -inputs.logprobs_BT * inputs.advantages_BT
    inputs.advantages_BT.mul_(0.5)
    return LossOutput(values_BT)


def siblings_by_position(batch, world, *, config):
    """Takes every two adjacent rows for siblings."""
    rewards_B = batch.rewards_B.nan_to_num() * batch.scored_B
    while len(rewards_B) % 2:
        rewards_B = rewards_B.new_tensor([*rewards_B.tolist(), 0.0])
    groups = rewards_B.reshape(-1, 2)
    values_B = (groups - groups.mean(1, keepdim=True)).reshape(-1)[: len(batch)] * batch.scored_B
    return Advantages(values_B[:, None] * batch.mask_BT)


def whitened_over_padding(batch, world, *, config):
    """Centres over all of [B, T], padding included."""
    rewards_BT = (batch.rewards_B.nan_to_num() * batch.scored_B)[:, None] * batch.mask_BT
    return Advantages((rewards_BT - rewards_BT.mean()) * batch.scored_B[:, None])


def unscored_taken_for_zero(batch, world, *, config):
    """Counts unscored rows as reward 0 in the mean."""
    rewards_B = batch.rewards_B.nan_to_num(nan=0.0)
    mates_BB = batch.group_B[:, None] == batch.group_B[None]
    mean_B = (mates_BB * rewards_B).sum(1) / mates_BB.sum(1)
    return Advantages(((rewards_B - mean_B) * batch.scored_B)[:, None] * batch.mask_BT)


def mean_of_this_rank(batch, world, *, config):
    """Subtracts the mean of this rank's rows."""
    scored = batch.scored_B
    rewards_B = batch.rewards_B.nan_to_num(nan=0.0) * scored
    mean = rewards_B.sum() / scored.sum().clamp(min=1)
    return Advantages(((rewards_B - mean) * scored)[:, None] * batch.mask_BT)


def divides_by_zero(batch, world, *, config):
    """NaN where rewards are equal."""
    rewards_B = batch.rewards_B.nan_to_num(nan=0.0)
    mates_BB = (batch.group_B[:, None] == batch.group_B[None]) & batch.scored_B[None]
    count_B = mates_BB.sum(1).clamp(min=1)
    mean_B = (mates_BB * rewards_B).sum(1) / count_B
    centred_B = (rewards_B - mean_B) * batch.scored_B
    std_B = ((mates_BB * (rewards_B[None] - mean_B[:, None]) ** 2).sum(1) / (count_B - 1)).sqrt()
    return Advantages((centred_B / std_B)[:, None] * batch.mask_BT)


def offset_kl(logprobs_BT, ref_logprobs_BT, *, config):
    """Not 0 at equality."""
    return (logprobs_BT - ref_logprobs_BT) ** 2 + 1.0


def batch_kl(logprobs_BT, ref_logprobs_BT, *, config):
    """Mixes tokens."""
    gap_BT = logprobs_BT - ref_logprobs_BT
    return gap_BT - gap_BT.mean()


def local_quantile(batch, world, *, config):
    """A quantile of this rank's tokens alone."""
    return batch.entropy_BT >= batch.entropy_BT[batch.mask_BT].quantile(0.8)


def weights_of_two(batch, world, *, config):
    """Not 1 without a gap."""
    return Corrected(weights_BT=batch.mask_BT * 2.0)


def reversing_filter(group, *, config):
    """Changes the group."""
    group.rollouts.reverse()
    return True


def first_sibling_filter(group, *, config):
    """Looks at one sibling alone."""
    return group.rollouts[0].reward == 1.0


class CoinReward:
    """A verdict that depends on its place in the call."""

    def __init__(self, config):
        pass

    def score(self, requests):
        return [float(place) for place in range(len(requests))]


class ShortReward:
    """Forgets one request."""

    def __init__(self, config):
        pass

    def score(self, requests):
        return [1.0] * (len(requests) - 1)


class UnreadyReward:
    """Cannot take an empty response."""

    def __init__(self, config):
        pass

    def score(self, requests):
        return [1.0 / len(request.response) for request in requests]


class ForgetfulTask:
    """Starts over after a resume."""

    def __init__(self, config, setup):
        from lightrft_core.testing.toys import ToyTask, ToyTaskConfig

        self._task = ToyTask(ToyTaskConfig(), setup)
        self.draw, self.everything, self.fingerprint = self._task.draw, self._task.everything, self._task.fingerprint

    def __len__(self):
        return 10

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class MeanShaper:
    """Subtracts the mean of this rank's rewards."""

    def __init__(self, config, setup):
        pass

    def apply(self, groups, world):
        rollouts = [item for group in groups for item in group.rollouts if item.reward is not None]
        mean = sum(item.reward for item in rollouts) / max(len(rollouts), 1)
        for rollout in rollouts:
            rollout.shaped_reward = rollout.reward - mean
        return {}


class SameSeedSampler:
    """Gives every sibling the first one's seed."""

    def __init__(self, config, setup):
        self._config, self._setup = config, setup

    def sample(self, engine, prompts, *, step, attempt=0):
        from lightrft_core.data import Sampling
        from lightrft_core.drawing import sample_groups

        sampling = Sampling(max_new_tokens=3, stop_token_ids=(10,))
        size = self._config.group_size
        groups = sample_groups(
            engine, self._setup.require_model(), prompts, sampling, size, run_seed=self._setup.run.seed, purpose=step
        )
        for group in groups:
            for rollout in group.rollouts:
                rollout.seed = group.rollouts[0].seed
        return groups
