"""A model adapter: texts and tokens agree, batches are laid out as promised, and no layout changes a number.

A patch: applying it twice is applying it once.
"""

from typing import Any, cast

from lightrft_core.data import Batch
from lightrft_core.descriptors import ModelComponent
from lightrft_core.protocols import Setup
from lightrft_core.sections import ModelSection
from lightrft_core.testing import tensors
from lightrft_core.testing.engine_case import prompts_for
from lightrft_core.testing.results import Case, Check, Skipped, require
from lightrft_core.testing.strategy_checks import completed_groups
from lightrft_core.testing.torch_toys import tiny_policy
from lightrft_core.testing.toys import toy_setup

TOLERANCE = 1e-4


def adapter_of(case: Case) -> Any:  # Any: the adapter under test
    """The adapter, built once."""
    tensors.torch_module()
    if "adapter" not in case.parts:
        setup = case.given or toy_setup(case.run_dir)
        setup.model_section = cast(ModelSection, case.options)
        setup.model = case.target(case.options, setup)
        case.parts["setup"], case.parts["adapter"] = setup, setup.model
    return case.parts["adapter"]


def module_of(case: Case) -> Any:  # Any: a torch module
    """The policy, loaded once; in float32, so that layouts can be compared closely."""
    adapter = adapter_of(case)
    if "module" not in case.parts:
        case.parts["module"] = adapter.load("policy").float()
    return case.parts["module"]


def batch_of(case: Case) -> Batch:
    """Ragged completions; the last row is not scored."""
    adapter = adapter_of(case)
    groups = completed_groups(adapter, _setup(case))
    last = groups[-1].rollouts[-1]
    last.reward = last.shaped_reward = None
    batch: Batch = adapter.collate(groups)
    return batch


def prompts_are_rendered(case: Case) -> None:
    """Token ids, the same each time, other ones for another prompt; stop tokens are known."""
    adapter = adapter_of(case)
    rendered = [adapter.render(prompt) for prompt in prompts_for(_setup(case))]
    require(all(ids and all(isinstance(token, int) for token in ids) for ids in rendered), "no token ids")
    require(len(set(rendered)) == len(rendered), "two prompts are rendered alike")
    require([adapter.render(prompt) for prompt in prompts_for(_setup(case))] == rendered, "rendering changes")
    require(len(adapter.stop_token_ids) > 0, "stop_token_ids is empty: nothing would end a completion")


def texts_and_tokens_agree(case: Case) -> None:
    """Text survives encode and decode; a piece per token; stop tokens have no text."""
    adapter = adapter_of(case)
    for text in ("12", "3456789"):
        token_ids = adapter.encode(text)
        require(adapter.decode(token_ids) == text, f"{text!r} comes back as {adapter.decode(token_ids)!r}")
        require(len(adapter.pieces(token_ids)) == len(token_ids), "not one piece per token")
        ended = (*token_ids, *adapter.stop_token_ids[:1])
        require(adapter.decode(ended) == text, "a stop token leaves text behind")


def batches_are_laid_out_as_promised(case: Case) -> None:
    """Right-padded, bool mask, siblings share a number, unscored rows are marked, the last token trains."""
    torch = tensors.torch_module()
    batch = batch_of(case)
    groups = completed_groups(adapter_of(case), _setup(case))
    rollouts = [(number, rollout) for number, group in enumerate(groups) for rollout in group.rollouts]
    require(len(batch) == len(rollouts), f"{len(batch)} rows for {len(rollouts)} rollouts")
    require(batch.mask_BT.dtype == torch.bool and batch.scored_B.dtype == torch.bool, "masks must be bool")
    require(batch.scored_B.tolist() == [True] * (len(batch) - 1) + [False], "scored_B does not mark the unscored row")
    for row, (number, rollout) in enumerate(rollouts):
        length = len(rollout.token_ids)
        ids = tuple(batch.completion_ids_BT[row, :length].tolist())
        require(ids == rollout.token_ids and int(batch.lengths_B[row]) == length, f"row {row} holds other tokens")
        require(not bool(batch.mask_BT[row, length:].any()), f"row {row}: padding trains")
        if row + 1 < len(batch):
            require(bool(batch.mask_BT[row, :length].all()), f"row {row}: a token that the mask allows does not train")
            require(float(batch.rewards_B[row]) == rollout.reward, f"row {row}: another reward")
        mate = bool(batch.group_B[row] == batch.group_B[0])
        require(mate == (number == 0), f"row {row}: group_B does not tell siblings from others")


def logprobs_are_logprobs(case: Case) -> None:
    """[B, T], finite, at most 0; the entropy is not negative; a gradient reaches the weights."""
    torch = tensors.torch_module()
    batch, module = batch_of(case), module_of(case)
    found = adapter_of(case).logprobs(module, batch, layout="padded", entropy=True)
    kept_N = found.logprobs_BT[batch.mask_BT]
    require(found.logprobs_BT.shape == batch.mask_BT.shape, f"shape {tuple(found.logprobs_BT.shape)}, expected [B, T]")
    require(bool(torch.isfinite(kept_N).all()) and float(kept_N.detach().max()) <= 1e-6, "not finite or above 0")
    require(found.entropy_BT is not None, "no entropy although it was asked for")
    require(float(found.entropy_BT.detach()[batch.mask_BT].min()) >= -1e-6, "the entropy is negative")
    kept_N.sum().backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    require(any(float(gradient.abs().sum()) > 0 for gradient in gradients), "no gradient reaches the weights")
    module.zero_grad(set_to_none=True)


def packed_equals_padded(case: Case) -> None:
    """Leaving padding out changes nothing; neither do the other rows."""
    torch = tensors.torch_module()
    adapter, batch, module = adapter_of(case), batch_of(case), module_of(case)
    with torch.no_grad():
        padded_BT = adapter.logprobs(module, batch, layout="padded").logprobs_BT
        for layout in ("packed", "auto"):
            found_BT = adapter.logprobs(module, batch, layout=layout).logprobs_BT
            gap = tensors.deviation(found_BT, padded_BT, batch.mask_BT)
            require(gap <= TOLERANCE, f"layout {layout!r} changes log-probabilities by {gap:.3g}")
        alone_BT = adapter.logprobs(module, batch.rows([1]), layout="padded").logprobs_BT
    gap = tensors.deviation(alone_BT, padded_BT[1:2], batch.mask_BT[1:2])
    require(gap <= TOLERANCE, f"a row by itself has other log-probabilities, by {gap:.3g}")


def export_writes_a_hugging_face_folder(case: Case) -> None:
    """config.json, safetensors and the tokenizer."""
    folder = case.run_dir / "exported"
    folder.mkdir(exist_ok=True)
    adapter_of(case).export(module_of(case), folder)
    names = {path.name for path in folder.iterdir()}
    require("config.json" in names, "there is no config.json")
    require(any(name.endswith(".safetensors") for name in names), "there are no safetensors")
    require(any(name.startswith("tokenizer") for name in names), "there is no tokenizer")


def patch_is_idempotent(case: Case) -> None:
    """Twice is once: the same parameters, values, gradient flags and outputs."""
    torch = tensors.torch_module()
    module = _patchable(case)
    case.target(module)
    once = _facts(module)
    case.target(module)
    twice = _facts(module)
    require(list(once) == list(twice), "the second time changes the names of parameters")
    for name, (value, trains) in once.items():
        require(trains == twice[name][1], f"the second time changes whether {name} trains")
        require(torch.equal(value, twice[name][0]), f"the second time changes {name}")


def _patchable(case: Case) -> Any:  # Any: a torch module
    descriptor = case.descriptor
    assert isinstance(descriptor, ModelComponent)
    if case.given is not None:
        return case.given.require_model().load("policy")
    if "*" not in descriptor.model_types:
        raise Skipped(f"a model of type {', '.join(descriptor.model_types)}: pass `setup=`")
    return tiny_policy()


def _facts(module: Any) -> dict[str, tuple[Any, bool]]:  # Any: a torch module, and tensors
    return {name: (item.detach().clone(), item.requires_grad) for name, item in module.named_parameters()}


def _setup(case: Case) -> Setup:
    adapter_of(case)
    return cast(Setup, case.parts["setup"])


MODEL: tuple[Check, ...] = (
    prompts_are_rendered,
    texts_and_tokens_agree,
    batches_are_laid_out_as_promised,
    logprobs_are_logprobs,
    packed_equals_padded,
    export_writes_a_hugging_face_folder,
)
PATCH: tuple[Check, ...] = (patch_is_idempotent,)
