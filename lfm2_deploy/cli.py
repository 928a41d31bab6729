"""The command line: which commands there are. What they do is in `commands`."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated, TextIO, get_args

import typer

from lfm2_deploy.commands import shells
from lfm2_deploy.commands.bench import bench
from lfm2_deploy.commands.card import card
from lfm2_deploy.commands.chat import chat
from lfm2_deploy.commands.check import check
from lfm2_deploy.commands.compare import compare
from lfm2_deploy.commands.compile_graphs import compile_graphs
from lfm2_deploy.commands.console import note
from lfm2_deploy.commands.demo import demo
from lfm2_deploy.commands.doctor import doctor
from lfm2_deploy.commands.eval import evaluate
from lfm2_deploy.commands.export import export
from lfm2_deploy.commands.failures import PROGRAM, CommandGroup
from lfm2_deploy.commands.generate import generate
from lfm2_deploy.commands.help import Command
from lfm2_deploy.commands.import_model import import_model
from lfm2_deploy.commands.inspect import inspect
from lfm2_deploy.commands.lint import lint
from lfm2_deploy.commands.list_models import list_models
from lfm2_deploy.commands.plan import plan
from lfm2_deploy.commands.prepare import prepare
from lfm2_deploy.commands.pull import pull
from lfm2_deploy.commands.push import push
from lfm2_deploy.commands.remove import remove
from lfm2_deploy.commands.serve import serve
from lfm2_deploy.commands.verify import verify

app = typer.Typer(
    name=PROGRAM,
    cls=CommandGroup,
    add_completion=False,  # `start` has the options, and `shells` what they do
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is shorter, and as readable in a file
)
# Where a command's name is a word of Python's own, or of ours.
_NAMES = {
    "compile_graphs": "compile",
    "evaluate": "eval",
    "import_model": "import",
    "list_models": "list",
}
# What commands are for, as `--help` groups them.
_PANELS = {
    "Try and plan": ("demo", "doctor", "plan"),
    "Keep models": ("pull", "list", "remove"),
    "Make bundles": ("export", "import", "compile", "prepare", "inspect", "lint"),
    "Run them": ("chat", "generate", "serve", "bench"),
    "Publish them": ("card", "push"),
    "Check them": ("check", "verify", "compare", "eval"),
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names}
for command in (
    demo,
    pull,
    list_models,
    remove,
    plan,
    export,
    import_model,
    compile_graphs,
    prepare,
    generate,
    chat,
    serve,
    inspect,
    lint,
    verify,
    check,
    compare,
    evaluate,
    bench,
    card,
    push,
    doctor,
):
    name = _NAMES.get(command.__name__, command.__name__)
    app.command(name, cls=Command, rich_help_panel=_PANEL_OF.get(name))(command)

_SHELL = f"For the two options above: {', '.join(get_args(shells.Shell))}."


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        print(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option("--install-completion", help="Let this shell complete words with Tab."),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option("--show-completion", help="Print the script that --install-completion adds."),
    ] = False,
    shell: Annotated[
        shells.Shell | None,
        typer.Option(metavar="NAME", help=_SHELL, show_default="the one this runs in"),
    ] = None,
) -> None:
    """Export Liquid AI's LFM2 models and run them on laptops.

    \b
    Start here:
      lfm2-deploy demo                          the whole way on a small model, offline
      lfm2-deploy export LiquidAI/LFM2-350M     make a bundle of a model on the Hub
      lfm2-deploy chat ./LFM2-350M-cpu-int4     talk with it
      lfm2-deploy serve ./LFM2-350M-cpu-int4    serve it to other programs, and chat in a page

    Every command tells more: lfm2-deploy COMMAND --help. A bundle is a folder that
    `export` made. Results go to stdout, progress and errors to stderr. Exit
    codes: 0 done, 1 error, 2 wrong usage, 3 a bug, 130 interrupted.
    """
    if install_completion or show_completion:
        _serve_shell(shell or shells.find_shell(), install_completion)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _serve_shell(shell: str, install: bool) -> None:
    if install:
        for sentence in shells.install_telling(PROGRAM, shell):
            note(sentence)
    else:
        print(shells.write_script(PROGRAM, shell))


def main() -> int:
    """Run the command line of this process; return its exit code."""
    # torch's threads wait by spinning, which is very slow where others use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _prepare_stream(sys.stdin, "utf-8-sig", "surrogateescape")
    _prepare_stream(sys.stdout, "utf-8", "replace")
    _prepare_stream(sys.stderr, "utf-8", "replace")
    return app(prog_name=PROGRAM, standalone_mode=False) or 0


def _prepare_stream(stream: TextIO | None, encoding: str, errors: str) -> None:
    """Give a pipe or file this encoding, whatever the system's; a terminal keeps its own.

    A character that an encoding lacks must not end the program in either case.
    """
    if not isinstance(stream, TextIOWrapper):  # replaced by the caller, or absent
        return
    if stream.isatty() or os.environ.get("PYTHONIOENCODING"):
        stream.reconfigure(errors=errors)
    else:
        stream.reconfigure(encoding=encoding, errors=errors)
