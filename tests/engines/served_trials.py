"""An engine with a process of its own beside the trainer that it serves, and what tests ask of the two."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from lightrft_core.data import Completion, GenerateRequest, Group, Prompt, Rollout, Sampling
from lightrft_core.protocols import Engine, Setup, Strategy
from lightrft_core.sections import OptimSection, RunSection, SamplerSection


@contextmanager
def refusing(status: int) -> Iterator[str]:
    """The address of a server that refuses everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(status)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def same(one: Sequence[Sequence[Completion]], other: Sequence[Sequence[Completion]]) -> bool:
    """Whether completions are the same but for rounding, which depends on what a server happens to batch."""
    pairs = [pair for left, right in zip(one, other, strict=True) for pair in zip(left, right, strict=True)]
    return all(
        (left.token_ids, left.finish_reason) == (right.token_ids, right.finish_reason)
        and max(abs(a - b) for a, b in zip(left.logprobs, right.logprobs, strict=True)) < 1e-4
        for left, right in pairs
    )


@dataclass
class Trial:
    """An engine beside the trainer that it serves."""

    engine: Engine
    strategy: Strategy
    setup: Setup
    states: Sequence[dict] = ()  # of this process, before and after the engine's start

    @property
    def label(self) -> str:
        return self.engine._backend.label

    def requests(self, *lengths: int, num: int = 3, **sampling) -> list[GenerateRequest]:
        settings = Sampling(**{"max_new_tokens": 12, **sampling})
        prompts = [tuple(1 + place % 90 for place in range(size)) for size in lengths or (3, 40, 17)]
        seeds = tuple(range(100, 100 + num))
        return [GenerateRequest(f"p{len(prompt)}", prompt, seeds, settings) for prompt in prompts]

    def gap(self, requests=None) -> float:
        """Largest difference between the engine's log-probabilities and the trainer's, in nats."""
        requests = requests or self.requests()
        groups = [
            Group(
                Prompt(request.prompt_id, ()),
                request.prompt_token_ids,
                [
                    Rollout(request.prompt_id, index, one.token_ids, "", one.logprobs, one.finish_reason, 0, reward=0.0)
                    for index, one in enumerate(completions)
                ],
            )
            for request, completions in zip(requests, self.engine.generate(requests), strict=True)
        ]
        batch = self.setup.model.collate(groups)
        trained_BT = self.strategy.logprobs(batch).logprobs_BT
        return float((trained_BT - batch.engine_logprobs_BT)[batch.mask_BT].abs().max())

    def change(self, factor: float = 1.2) -> None:
        """As training would: other weights in the trainer alone."""
        with torch.no_grad():
            for parameter in self.strategy.policy.parameters():
                parameter.mul_(factor)

    def names(self) -> list[str]:
        return [name for name, _ in self.strategy.weights()]

    def wrong(self) -> list[str]:
        """Parameters that are served otherwise than trained."""
        trained = self.strategy.fingerprint(1000)
        served = self.engine.fingerprint(list(trained))
        return [name for name in trained if served[name] != trained[name]]


def build(open_engine, config, path: Path, run_dir: Path) -> Trial:
    """Model, strategy and engine on a folder; imports wait until the engine is known to be here."""
    from lightrft_engines.config import TextConfig
    from lightrft_engines.text import TextAdapter
    from lightrft_engines.training.config import SingleConfig
    from lightrft_engines.training.single import SingleStrategy

    model = TextConfig(path=str(path))
    setup = Setup(
        run=RunSection(),
        optim=OptimSection(lr=1e-2),
        sampler=SamplerSection(),
        model_section=model,
        run_dir=run_dir,
        num_optimizer_steps=10,
    )
    setup.model = TextAdapter(model, setup)
    setup.strategy = strategy = SingleStrategy(SingleConfig(device="cpu"), setup)
    setup.world = strategy.world
    return Trial(open_engine(config, setup), strategy, setup)
