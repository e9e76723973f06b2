"""The command line: ``lowdim <system> <verb>``.

Problem: a person (or a script) wants a result from files without writing
Python. Every file of this folder is one command, thin and without mathematics;
it exposes ``register(app)``. A file put here is a command: nothing else has to
be told. `manners` holds what all commands share: errors as one red panel,
``--json`` on stdout with progress on stderr, exit codes.

Exit codes: 0 done, 1 a quality gate failed, 2 wrong input, 70 a defect of
ours, 130 interrupted.

No file of this folder imports torch at module level, so that ``lowdim --help``
answers at once.

Examples
--------
>>> from lowdim.cli import commands
>>> "doctor" in commands()
True
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

import lowdim
from lowdim.cli import manners

__all__ = ["build", "commands", "main"]

# These look after the house itself; every other command is a system, and systems come first.
HOUSE = ("claims", "doctor")

HELP = (
    "Make big models and big data cheap through the low-dimensional structure they live near.\n\n"
    "Start with [bold]lowdim compress MODEL --keep 0.5 -o OUT[/bold]: a trained network becomes a smaller "
    "and faster one, with a report that says what was kept and what was lost.\n\n"
    "[bold]lowdim COMMAND --help[/bold] shows the options of a command; [bold]--debug[/bold], anywhere on "
    "the line, shows the traceback of an error."
)


def commands() -> list[str]:
    """Return the names of the command files in the order in which help lists them."""
    files = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "manners"]
    return sorted(files, key=lambda name: (name in HOUSE, name))


def build() -> typer.Typer:
    """Return the application with every command registered (imports no heavy package).

    Returns
    -------
    typer.Typer
        The application; `typer.testing.CliRunner` takes it as it is.
    """
    app = typer.Typer(
        name="lowdim",
        cls=manners.Frame,
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def frame(
        version: Annotated[
            bool,
            typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True),
        ] = False,
    ) -> None:
        pass

    for name in commands():
        import_module(f"lowdim.cli.{name}").register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``lowdim``; by default those of the process.

    Raises
    ------
    SystemExit
        Always, with the exit code.
    """
    # Large tensors in huge pages (torch reads this when it is loaded): page faults took a quarter of the
    # time of training.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    with manners.line(given) as words, manners.errors():
        command = typer.main.get_command(build())
        outcome = command.main(args=words, prog_name="lowdim", standalone_mode=False)
    sys.exit(outcome if isinstance(outcome, int) else 0)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"lowdim {lowdim.__version__}\n")
        raise typer.Exit
