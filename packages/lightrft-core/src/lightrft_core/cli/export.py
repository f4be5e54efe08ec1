"""`lightrft export RUN --to DIR`: a checkpoint as a folder that `AutoModelForCausalLM.from_pretrained` loads."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, cast

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", help="Write a run's policy as a Hugging Face folder.")(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder or name of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New folder for model and tokenizer.")],
    step: Annotated[
        int | None, typer.Option("--step", metavar="NUMBER", help="Checkpoint of this step; by default the newest.")
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Write the moving average of the weights (strategy.ema), not the last ones.")
    ] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapters alone, as a PEFT folder, not the merged model.")
    ] = False,
) -> None:
    """Load the checkpoint and write the model, its tokenizer and generation settings as safetensors."""
    from lightrft_core import launch
    from lightrft_core.abilities import AveragingStrategy, LoraStrategy
    from lightrft_core.command_line import resolve_command_line
    from lightrft_core.errors import UserError
    from lightrft_core.exporting import build_exporter, export_policy
    from lightrft_core.rundir import RunDir
    from lightrft_core.session import checkpoint_of

    if to.exists() and any(to.iterdir()):
        raise UserError("the folder is not empty", where=str(to), hint="Choose a new one; nothing is overwritten.")
    run_dir = RunDir.find(run)
    run_file, plugins = resolve_command_line(str(run_dir.run_yaml), [], [])
    if ema and "ema" not in run_file.strategy.component.provides:
        what = f"strategy {run_file.strategy.name} keeps no average of the weights."
        raise UserError(what, where="--ema", hint="Leave it out.")
    if adapter and "lora" not in run_file.strategy.component.provides:
        what = f"strategy {run_file.strategy.name} trains no adapters."
        raise UserError(what, where="--adapter", hint="Leave it out.")
    checkpoint = checkpoint_of(run_dir, step)
    if not ema and not adapter:
        export_policy(run_file, plugins, run_dir, checkpoint, to)
    else:
        if not checkpoint.is_resumable:
            what, where = "this checkpoint holds the policy's weights alone.", "--ema" if ema else "--adapter"
            raise UserError(what, where=where, hint="Leave it out, or choose another `--step`.")
        with closing(build_exporter(run_file, plugins, run_dir)) as strategy:
            strategy.load(checkpoint.path)
            if ema:
                cast(AveragingStrategy, strategy).take_average()
            if adapter:
                cast(LoraStrategy, strategy).export_adapters(to)
            else:
                strategy.export(to)
    if launch.rank() == 0:
        print(f"wrote step {checkpoint.step} of {run_dir.path} to {to}")
