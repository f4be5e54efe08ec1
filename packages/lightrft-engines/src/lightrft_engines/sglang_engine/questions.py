"""Questions to SGLang's workers, by the route that reads a weight by its name (see `scheduler`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightrft_core.errors import RunFailed
from lightrft_core.protocols import Weights

from lightrft_engines.serving.engine import Facts
from lightrft_engines.serving.server import Transfer
from lightrft_engines.sglang_engine.scheduler import QUESTION

Call = Callable[[str, Mapping[str, Any]], Any]  # one of SGLang's routes with a body of JSON


def ask(call: Call, what: str, names: Sequence[str] = ()) -> Sequence[Any]:  # Any: what `served.QUESTIONS` tell
    """One answer for each worker."""
    told = call("get_weights_by_name", {"name": QUESTION + json.dumps({"ask": what, "names": list(names)})})
    answers: Sequence[Any] = json.loads(bytes(int(number) for number in told))
    return answers


def facts_of(told: Mapping[str, Any]) -> Facts:  # Any: JSON
    """What a worker said of itself; SGLang goes on without a hook that it could not set, and we do not."""
    if told["lacks"]:
        raise RunFailed(
            f"SGLang's schedulers run without {told['lacks'][0]} as LightRFT needs it",
            where="engine",
            hint="Use a version of SGLang that this package was written against: `lightrft plugins show sglang`.",
        )
    return Facts(told["max_model_len"], told["is_multimodal"])


class Checked:
    """A way for weights that tells what an update left out."""

    def __init__(self, transfer: Transfer, call: Call, is_leader: bool) -> None:
        self._transfer, self._call, self._is_leader = transfer, call, is_leader

    def send(self, weights: Weights) -> Sequence[str]:
        """Served parameters that none of these fill."""
        names: list[str] = []

        def named() -> Any:  # Any: an iterator of weights
            for name, tensor in weights():
                names.append(name)
                yield name, tensor

        self._transfer.send(named)
        if not self._is_leader:
            return []
        return sorted({name for worker in ask(self._call, "missing", names) for name in worker})

    def close(self) -> None:
        """As the way itself."""
        self._transfer.close()
