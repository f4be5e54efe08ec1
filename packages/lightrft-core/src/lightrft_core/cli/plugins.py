"""`lightrft plugins list|show|check|new`, and the commands that plugins add. Imports no component it does not show."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lightrft_core.descriptors import Command
from lightrft_core.errors import ExitCode, UserError
from lightrft_core.kinds import BY_NAME
from lightrft_core.plugins import Plugins

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("--file", metavar="PATH", help="Also load this plugin: a .py file or a project folder. Repeatable."),
]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, explain, check and start plugins.")
    group.command("list")(list_plugins)
    group.command("show")(show)
    group.command("check")(check)
    group.command("new")(new)
    app.add_typer(group, name="plugins")


def list_plugins(
    as_json: Json = False,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only components of this kind.")] = None,
    files: Files = None,
) -> None:
    """Every component of every plugin, and every plugin that cannot be used, with the reason."""
    from lightrft_core.cli.plugin_table import as_data, print_table

    plugins = Plugins.load(files or ())
    chosen = _known_kind(kind) if kind else None
    if as_json:
        print(json.dumps(as_data(plugins, chosen), indent=2))
    else:
        print_table(plugins, chosen)


def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="KIND.NAME such as loss.clip, a NAME, or the name of a plugin.")
    ],
    as_json: Json = False,
    files: Files = None,
) -> None:
    """What a component does, what it needs, and every option that it has."""
    from lightrft_core.cli.plugin_page import pages_for, render

    pages = pages_for(name, Plugins.load(files or ()))
    if as_json:
        print(json.dumps(pages, indent=2))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n\n".join(render(page, width) for page in pages))


def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An installed plugin or KIND.NAME; or a .py file or a project folder.")
    ],
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For an option without a default. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the conformance kit on every component of a plugin. Exit 1 where something fails."""
    from lightrft_core.cli.plugin_check import check_plugin, print_results

    checks = check_plugin(name, dict(map(_key_and_value, options or ())))
    if as_json:
        print(json.dumps([item.as_data() for item in checks], indent=2))
    else:
        print_results(checks)
    if any(not item.ok for item in checks):
        raise typer.Exit(int(ExitCode.FAILED))


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the plugin, such as acme; the package becomes lightrft-acme.")
    ],
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help=f"What it adds: {', '.join(BY_NAME)}.")],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to write the project's folder.")] = Path(),
) -> None:
    """Write a project that adds one component: it works, has a test, and passes `plugins check`."""
    from lightrft_core.scaffold import write_project

    project = write_project(name, _known_kind(kind), folder)
    print(f"wrote {project}")
    print("next:")
    for command in (f"lightrft plugins check {project}", f"pip install -e {project}", "lightrft plugins list"):
        print(f"  {command}")


def _key_and_value(text: str) -> tuple[str, Any]:  # Any: a YAML value
    import yaml

    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise UserError(
            f"{text!r} is not of the form KEY=VALUE.", where="--set", hint="For example path=./my.py:reward"
        )
    return key, yaml.safe_load(value)


def mount_commands(app: typer.Typer, plugins: Plugins) -> None:
    """Add the commands that plugins offer; each is imported when it is called.

    A name that LightRFT itself has is left to it, and one that two plugins offer is added as `plugin:name` too.
    """
    taken = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    offers = [offer for offer in plugins.offers("command") if offer.descriptor.name not in taken]
    counts = {name: [o.descriptor.name for o in offers].count(name) for name in {o.descriptor.name for o in offers}}
    names = {offer.descriptor.name: offer.descriptor.summary for offer in offers}
    for offer in offers:
        if counts[offer.descriptor.name] > 1:
            names[f"{offer.plugin}:{offer.descriptor.name}"] = offer.descriptor.summary
    for name, summary in names.items():
        _mount(app, plugins, name, summary)


def _mount(app: typer.Typer, plugins: Plugins, name: str, summary: str) -> None:
    def call(context: typer.Context) -> None:
        command = plugins.find("command", name, where=f"lightrft {name}")
        if not isinstance(command, Command):
            raise TypeError(f"{command!r} is no command")
        target = plugins.target(command)
        if not isinstance(target, typer.Typer):
            raise UserError(
                f"{command.target} is not a Typer app", where=f"lightrft {name}", hint="Its plugin is at fault."
            )
        sys.exit(target(args=context.args, prog_name=f"lightrft {name}"))

    passing_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help=summary, context_settings=passing_on)(call)


def _known_kind(kind: str) -> str:
    from lightrft_core.suggest import nearest

    if kind in BY_NAME:
        return kind
    near = nearest(kind, BY_NAME, limit=1)
    guess = f"Did you mean {near[0]!r}? " if near else ""
    raise UserError(f"there is no kind {kind!r}.", where="--kind", hint=f"{guess}Kinds: {', '.join(BY_NAME)}.")
