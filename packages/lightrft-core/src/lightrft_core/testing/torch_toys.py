"""A tiny torch policy with its adapter: what strategies and patches are checked on where no real model is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightrft_core.data import Batch, Group, Prompt, Tensor
from lightrft_core.protocols import Layout, LogProbs, Module, Setup
from lightrft_core.sections import ModelSection
from lightrft_core.testing import tensors
from lightrft_core.testing.toy_model import PIECES, ToyModelAdapter
from lightrft_core.testing.toys import toy_setup

WIDTH = 8


def tiny_policy(seed: int = 0) -> Module:
    """Embedding, norm and head: the next token depends on the one before it alone."""
    torch = tensors.torch_module()
    without_gpus: list[int] = []
    with torch.random.fork_rng(devices=without_gpus):
        torch.manual_seed(seed)
        policy = torch.nn.Sequential()
        policy.add_module("embed", torch.nn.Embedding(len(PIECES), WIDTH))
        policy.add_module("norm", torch.nn.LayerNorm(WIDTH))
        policy.add_module("head", torch.nn.Linear(WIDTH, len(PIECES)))
        return policy


class TorchToyAdapter:
    """The toy's digits and texts, with tensors."""

    stop_token_ids = ToyModelAdapter.stop_token_ids

    def __init__(self, config: ModelSection, setup: Setup) -> None:
        self._texts = ToyModelAdapter(config, setup)

    def load(self, role: str) -> Module:
        """The same weights for every role."""
        return tiny_policy()

    def render(self, prompt: Prompt) -> tuple[int, ...]:
        """Digits of the last message."""
        return self._texts.render(prompt)

    def encode(self, text: str) -> tuple[int, ...]:
        """A token per digit."""
        return self._texts.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Digits, without the stop token."""
        return self._texts.decode(token_ids)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Each token's letter."""
        return self._texts.pieces(token_ids)

    def collate(self, groups: Sequence[Group]) -> Batch:
        """Right-padded tensors in float32."""
        torch = tensors.torch_module()
        rows = self._texts.collate(groups)

        def padded(values: Sequence[Sequence[float]], kind: object) -> Tensor:
            longest = max((len(row) for row in values), default=0)
            return torch.tensor([[*row, *[0] * (longest - len(row))] for row in values], dtype=kind)

        return Batch(
            prompt_ids=rows.prompt_ids,
            prompt_token_ids=rows.prompt_token_ids,
            completion_ids_BT=padded(rows.completion_ids_BT, torch.long),
            mask_BT=padded(rows.mask_BT, torch.bool),
            lengths_B=torch.tensor(list(rows.lengths_B)),
            group_B=torch.tensor(list(rows.group_B)),
            rewards_B=torch.tensor(list(rows.rewards_B), dtype=torch.float32),
            scored_B=torch.tensor(list(rows.scored_B)),
            engine_logprobs_BT=padded(rows.engine_logprobs_BT, torch.float32),
            truncated_B=torch.tensor(list(rows.truncated_B or ()), dtype=torch.bool),
        )

    def layout_for(self, module: Module, batch: Batch, layout: Layout) -> Layout:
        """Always padded."""
        return "padded"

    def logprobs(
        self, module: Module, batch: Batch, *, layout: Layout = "auto", entropy: bool = False, chunk: int | None = None
    ) -> LogProbs:
        """Each token given the one before it."""
        torch = tensors.torch_module()
        last_B1 = torch.tensor([[ids[-1]] for ids in batch.prompt_token_ids], dtype=torch.long)
        device = next(module.parameters()).device
        ids_BT = batch.completion_ids_BT.to(device)
        before_BT = torch.cat([last_B1.to(device).reshape(-1, 1), ids_BT[:, :-1]], dim=1)
        all_BTV = module(before_BT).float().log_softmax(-1)
        entropy_BT = -(all_BTV.exp() * all_BTV).sum(-1) if entropy else None
        return LogProbs(all_BTV.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1), entropy_BT)

    def export(self, module: Module, path: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the names of the parameters; there is no Hugging Face folder of a toy."""
        names = list(weights) if weights is not None else [name for name, _ in module.named_parameters()]
        path.mkdir(exist_ok=True)
        (path / "toy.txt").write_text("\n".join(names))


def torch_setup(run_dir: Path) -> Setup:
    """A setup whose model adapter is this toy; the strategy is what is under test."""
    setup = toy_setup(run_dir)
    setup.strategy = None
    setup.model = TorchToyAdapter(setup.model_section, setup)
    setup.needs = frozenset({"old_logprobs", "ref_logprobs", "entropy"})
    setup.num_optimizer_steps = 10
    return setup
