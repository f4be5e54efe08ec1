"""One rank of `test_strategies_agree`, started by torchrun: ten steps of every strategy from the same batches.

    torchrun ... strategy_steps.py MODEL_FOLDER OUT.safetensors NAME [NAME ...]

Alone (without torchrun) it writes the weights that `single` ends with; on several ranks rank 0 prints as JSON how far
each strategy's weights and losses are from them.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch
from lightrft_core.data import Group, LossOutput, Prompt, Rollout
from lightrft_core.objective import Objective
from lightrft_core.protocols import Setup
from lightrft_core.sections import ModelSection, OptimSection, RunSection, SamplerSection
from lightrft_engines.config import TextConfig
from lightrft_engines.text import TextAdapter
from lightrft_engines.world import open_world
from safetensors.torch import load_file, save_file

NUM_STEPS, NUM_GROUPS, GROUP = 10, 4, 4
# A large epsilon: Adam otherwise turns rounding noise of zero gradients into whole steps.
OPTIM = OptimSection(lr=1e-3, eps=1e-3)
OBJECTIVE = Objective(
    lambda inputs: LossOutput(-(inputs.logprobs_BT - inputs.old_logprobs_BT).exp() * inputs.advantages_BT)
)
KINDS = {
    "single": ("single:SingleStrategy", "SingleConfig"),
    "ddp": ("single:DDPStrategy", "DDPConfig"),
    "fsdp2": ("fsdp2:Fsdp2Strategy", "Fsdp2Config"),
    "zero1": ("deepspeed:DeepSpeedStrategy", "DeepSpeedConfig"),
    "zero2": ("deepspeed:DeepSpeedStrategy", "DeepSpeedConfig"),
    "zero3": ("deepspeed:DeepSpeedStrategy", "DeepSpeedConfig"),
}
WAYS = {"packed": {}, "padded": {"packing": False}, "accumulated": {"micro_batch_size": 2}}


def groups(seed: int) -> list[Group]:
    """Ragged rollouts of random tokens."""
    draw = torch.Generator().manual_seed(seed)

    def ids(most: int) -> tuple[int, ...]:
        length = int(torch.randint(3, most, (), generator=draw))
        return tuple(torch.randint(5, 60, (length,), generator=draw).tolist())

    found = []
    for number in range(NUM_GROUPS):
        texts = [ids(24) for _ in range(GROUP)]
        rollouts = [
            Rollout(str(number), index, text, "", (-1.0,) * len(text), "stop", 0, reward=float(index % 2))
            for index, text in enumerate(texts)
        ]
        found.append(Group(Prompt(str(number), ({"role": "user", "content": "x"},)), ids(40), rollouts))
    return found


def steps(folder: str, kind: str, way: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the steps on this rank's groups, and the weights after them."""
    setup = Setup(
        run=RunSection(), optim=OPTIM, sampler=SamplerSection(), model_section=ModelSection(path=folder),
        run_dir=Path(folder), num_optimizer_steps=NUM_STEPS,
    )  # fmt: skip
    setup.model = adapter = TextAdapter(TextConfig(path=folder), setup)
    target, config = KINDS[kind]
    module, name = target.split(":")
    options = WAYS[way] | ({"stage": int(kind[-1])} if kind.startswith("zero") else {})
    made = getattr(import_module("lightrft_engines.training.config"), config)(**options)
    strategy = getattr(import_module(f"lightrft_engines.training.{module}"), name)(made, setup)
    world, losses = strategy.world, []
    for step in range(NUM_STEPS):
        whole = adapter.collate(groups(step))
        draw = torch.Generator().manual_seed(step)
        whole.advantages_BT = torch.randn(len(whole), 1, generator=draw).expand(whole.mask_BT.shape).contiguous()
        mine = whole.rows([row for row in range(len(whole)) if (row // GROUP) % world.size == world.rank])
        total, count = strategy.step(mine, OBJECTIVE).metrics["loss"]
        losses.append(total / count)
    return losses, {name: tensor.detach().clone() for name, tensor in strategy.weights()}


def main() -> None:
    """Write the expected weights, or compare with them."""
    folder, out, *names = sys.argv[1:]
    world = open_world(torch.device("cpu"))
    if world.size == 1:
        losses, weights = steps(folder, "single", "packed")
        save_file(weights | {"losses": torch.tensor(losses)}, out)
        return
    expected = load_file(out)
    losses = expected.pop("losses")
    report = {}
    for name in names:
        found, weights = steps(folder, *name.split("/"))
        worst = max(float((weights[key] - expected[key]).abs().max()) for key in expected)
        report[name] = [worst, float((torch.tensor(found) - losses).abs().max())]
    if world.rank == 0:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
