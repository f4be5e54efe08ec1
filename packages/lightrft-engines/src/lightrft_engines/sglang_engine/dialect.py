"""How SGLang's server is started and spoken to."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from lightrft_core.errors import LightRFTError, UserError
from lightrft_core.protocols import Setup

from lightrft_engines.serving.engine import Facts, Samples
from lightrft_engines.serving.fitting import sync_way
from lightrft_engines.serving.http import FOREVER, Client, Refused
from lightrft_engines.serving.process import own_address
from lightrft_engines.serving.server import Server, Transfer
from lightrft_engines.serving.siblings import Sibling
from lightrft_engines.sglang_engine.arguments import arguments, command_line, environment, is_on_cpu
from lightrft_engines.sglang_engine.config import SglangConfig
from lightrft_engines.sglang_engine.faults import explained
from lightrft_engines.sglang_engine.questions import Checked, ask, facts_of
from lightrft_engines.sglang_engine.sampling import request, take
from lightrft_engines.sglang_engine.transfer import Broadcast, choose

MODULE = "lightrft_engines.sglang_engine.serve"


def server(config: SglangConfig, setup: Setup) -> Server:
    """SGLang over HTTP."""
    return Server(config, setup, SglangDialect(config, setup))


class SglangDialect:
    """`server.Dialect` of SGLang's own routes."""

    label = "SGLang"

    def __init__(self, config: SglangConfig, setup: Setup) -> None:
        self._config, self._setup = config, setup

    def command(self, host: str, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """Our module with its arguments as flags."""
        words = command_line(arguments(self._config, self._setup))
        command = [sys.executable, "-m", MODULE, "--host", host, "--port", str(port), *words, "--skip-server-warmup"]
        return command, environment(self._config.tensor_parallel)

    def facts(self, client: Client) -> Facts:
        """What the schedulers say; `UserError` where they are SGLang's own."""
        try:
            facts = ask(client.post_to, "facts")[0]
        except Refused as error:
            raise self._other(client, f"has none of LightRFT's schedulers: {error.what}.") from error
        if not facts["takes_files"] and sync_way(self._config, is_on_cpu=is_on_cpu()) == "shared_memory":
            raise self._other(client, "does not take weights through shared memory.")
        return facts_of(facts)

    def write(self, client: Client, sibling: Sibling, name: str, timeout: float | None) -> None:
        """By the route `/generate`."""
        body = {**request(sibling), "rid": name}
        take(sibling, client.post("/generate", body, timeout=FOREVER if timeout is None else timeout))

    def abort(self, client: Client, names: Sequence[str]) -> None:
        """All in one call, to the schedulers themselves."""
        ask(client.post_to, "abort", names)

    def samples(self, client: Client, names: Sequence[str]) -> Sequence[Samples]:
        """From our schedulers."""
        return cast(Sequence[Samples], ask(client.post_to, "samples", names))

    def reset_cache(self, client: Client) -> bool:
        """Prefixes; SGLang keeps no other cache of what the weights made."""
        return all(ask(client.post_to, "reset"))

    def sleep(self, client: Client, level: int) -> None:
        """Keys and values first: they refer to the weights."""
        client.post("/release_memory_occupation", {"tags": ["kv_cache"]})
        client.post("/release_memory_occupation", {"tags": ["weights"]})

    def wake(self, client: Client, tag: str) -> None:
        """One tag at a time."""
        client.post("/resume_memory_occupation", {"tags": [tag]})

    def transfer(self, client: Client, folder: Path) -> Transfer:
        """As `engine.sync` says; `UserError` where a server on another machine is to read this one's memory."""
        world, config, chosen = self._setup.world, self._config, sync_way(self._config, is_on_cpu=is_on_cpu())
        is_leader = world.rank == 0
        if chosen == "nccl":
            own = own_address(client.is_loopback)
            return Checked(Broadcast(client.post_to, world, config, own), client.post_to, is_leader)
        if not client.is_loopback:
            raise UserError(
                f"{client.url} is another machine, which cannot read the memory of this one.",
                where="engine.sync",
                hint="Use nccl between GPUs, or a server on this machine.",
            )
        transfer = choose(config, client.post_to, world, folder, is_leader=is_leader)
        return Checked(transfer, client.post_to, is_leader)

    def explained(self, text: str, doing: str) -> LightRFTError:
        """In terms of the run file."""
        return explained(text, doing)

    def _other(self, client: Client, what: str) -> UserError:
        hint = f"Start it by `python -m {MODULE} --model-path MODEL`, which takes the flags of `sglang.launch_server`."
        return UserError(f"the server at {client.url} {what}", where="engine.url", hint=hint)
