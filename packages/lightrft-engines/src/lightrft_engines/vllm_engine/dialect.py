"""How vLLM's server is started and spoken to; the routes that take weights belong to its development mode."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightrft_core.errors import LightRFTError, UserError
from lightrft_core.protocols import Setup

from lightrft_engines.serving.engine import Facts, Samples
from lightrft_engines.serving.fitting import sync_way
from lightrft_engines.serving.http import FOREVER, Client, Refused
from lightrft_engines.serving.server import Server, Transfer
from lightrft_engines.serving.siblings import Sibling
from lightrft_engines.vllm_engine.arguments import EXTENSION, LOGPROBS, arguments, command_line, is_on_cpu
from lightrft_engines.vllm_engine.config import VllmConfig
from lightrft_engines.vllm_engine.faults import explained
from lightrft_engines.vllm_engine.sampling import settings
from lightrft_engines.vllm_engine.transfer import choose_transfer

ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def server(config: VllmConfig, setup: Setup) -> Server:
    """vLLM over HTTP."""
    return Server(config, setup, VllmDialect(config, setup))


class VllmDialect:
    """`server.Dialect` of vLLM's OpenAI server."""

    label = "vLLM"

    def __init__(self, config: VllmConfig, setup: Setup) -> None:
        self._config, self._setup = config, setup

    def command(self, host: str, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """Its module with our arguments as flags."""
        found = arguments(self._config, self._setup)
        chosen = sync_way(self._config, is_on_cpu=is_on_cpu())
        if chosen != "shared_memory":
            found["weight_transfer_config"] = json.dumps({"backend": chosen})
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", host, "--port", str(port)]
        command += [*command_line(found), "--disable-uvicorn-access-log", "--disable-log-stats"]
        environment = dict(ENVIRONMENT)
        if chosen == "ipc":  # handles of CUDA memory travel pickled, from this process to its own server
            environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        return command, environment

    def facts(self, client: Client) -> Facts:
        """What the workers say; `UserError` where they lack our extension or give other log-probabilities."""
        what = ""
        try:
            facts: dict[str, Any] = rpc(client, "lightrft_facts")[0]  # Any: JSON
            if facts["logprobs_mode"] == LOGPROBS:
                return Facts(facts["max_model_len"], facts["is_multimodal"])
            what = f"gives {facts['logprobs_mode']}, which are not of the distribution that is sampled."
        except Refused as error:
            what = f"does not take weights: {error.what}."
        raise UserError(
            f"the server at {client.url} {what}",
            where="engine.url",
            hint="Start it with VLLM_SERVER_DEV_MODE=1 and "
            f"`--logprobs-mode {LOGPROBS} --worker-extension-cls {EXTENSION}`.",
        )

    def write(self, client: Client, sibling: Sibling, name: str, timeout: float | None) -> None:
        """By the route of completions."""
        body = {
            **settings(sibling),
            "prompt": list(sibling.prompt_token_ids),
            "return_token_ids": True,
            "request_id": name,
        }
        answer = client.post("/v1/completions", body, timeout=FOREVER if timeout is None else timeout)
        choice = answer["choices"][0]
        sibling.add(choice["token_ids"], (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"])
        sibling.finish(choice["finish_reason"])

    def abort(self, client: Client, names: Sequence[str]) -> None:
        """By the names that vLLM makes of ours."""
        client.post("/abort_requests", {"request_ids": [f"cmpl-{name}-0" for name in names]})

    def samples(self, client: Client, names: Sequence[str]) -> Sequence[Samples]:
        """From our worker extension."""
        return cast(Sequence[Samples], rpc(client, "lightrft_sample", json.dumps(list(names))))

    def reset_cache(self, client: Client) -> bool:
        """All three kinds."""
        client.post("/reset_mm_cache")
        client.post("/reset_encoder_cache")
        return bool(client.post("/reset_prefix_cache")["success"])

    def sleep(self, client: Client, level: int) -> None:
        """vLLM's sleep mode."""
        client.post("/sleep", query={"level": level, "mode": "wait"})

    def wake(self, client: Client, tag: str) -> None:
        """One tag at a time."""
        client.post("/wake_up", query={"tags": tag})

    def transfer(self, client: Client, folder: Path) -> Transfer:
        """As `engine.sync` says."""
        return choose_transfer(self._config, client, self._setup.world, folder)

    def explained(self, text: str, doing: str) -> LightRFTError:
        """In terms of the run file."""
        return explained(text, doing)


def rpc(client: Client, method: str, *args: str) -> Sequence[Any]:  # Any: what the workers' method returns
    """Call a method of all workers; one result for each."""
    answer = client.post("/collective_rpc", {"method": method, "args": list(args)})
    return cast(Sequence[Any], answer["results"])
