"""What all commands share: errors, JSON, progress, exit codes.

A command writes its result on stdout and everything else (progress, panels,
warnings) on stderr, so that ``lowdim ... --json | jq`` always works. It raises
the errors of `lowdim.errors` and lets `Frame` turn them into one red panel.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer.core import TyperGroup

from lowdim.errors import LowdimError, LowdimWarning

__all__ = [
    "DONE",
    "GATE_FAILED",
    "HOUSE_PANEL",
    "INTERRUPTED",
    "OURS",
    "SYSTEM_PANEL",
    "WRONG_INPUT",
    "Frame",
    "JsonOption",
    "console",
    "emit",
    "errors",
    "line",
    "out",
    "phases",
    "progress",
    "typed",
]

# The base of all complaints about the words of a command line, in the click that Typer uses (newer ones carry
# their own): BadParameter is a UsageError is a ClickException.
_WrongWords: Any = typer.BadParameter.__mro__[2]

DONE, GATE_FAILED, WRONG_INPUT, OURS, INTERRUPTED = 0, 1, 2, 70, 130
"""Exit codes; 70 (EX_SOFTWARE) is a defect of ours, 130 an interruption from the keyboard."""

SYSTEM_PANEL = "Systems"
HOUSE_PANEL = "The house"

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout; progress stays on stderr.")
]
"""The type of every command's ``json`` argument."""

console = Console(stderr=True)
"""Where people look while it runs: stderr."""

out = Console()
"""Where the result goes when it is not JSON: stdout."""


@dataclass(frozen=True)
class _Line:
    """The command line of this process, for messages about it."""

    words: tuple[str, ...] = ()
    debug: bool = False


_NONE = _Line()
_group: ContextVar[TyperGroup | None] = ContextVar("group", default=None)
_current: ContextVar[_Line] = ContextVar("line", default=_NONE)


@contextmanager
def line(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Take ``--debug`` out of the words of a command line and remember them for messages.

    Parameters
    ----------
    arguments : sequence of str
        The words after ``lowdim``.

    Yields
    ------
    list of str
        The words without ``--debug``, which may stand anywhere before ``--``.

    Examples
    --------
    >>> with line(["doctor", "--debug"]) as words:
    ...     words
    ['doctor']
    """
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    words = [word for word in given[:end] if word != "--debug"] + given[end:]
    token = _current.set(_Line(tuple(words), debug="--debug" in given[:end]))
    shown = warnings.showwarning
    warnings.showwarning = _warn
    try:
        yield words
    finally:
        warnings.showwarning = shown
        _current.reset(token)


@contextmanager
def errors() -> Iterator[None]:
    """Turn every exception into one panel on stderr and an exit code.

    Errors on purpose (`LowdimError`, a wrong option, a file that cannot be
    read or written) exit with 2, an interruption with 130 and the command that
    goes on from there, anything else with 70. ``--debug`` adds the traceback.
    With ``--json`` the error also goes to stdout as ``{"error": {...}}``.

    Raises
    ------
    SystemExit
        In place of the exception.
    """
    try:
        yield
    except (typer.Exit, SystemExit):
        raise
    except (KeyboardInterrupt, typer.Abort):
        _fail("Interrupted", _resume_hint(), code=INTERRUPTED, style="yellow")
    except _WrongWords as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            # `lowdim` without words: Typer has shown the help page, the message is empty or that page.
            sys.stderr.write(f"{error.format_message()}\n")
            raise SystemExit(WRONG_INPUT) from None
        _fail("Wrong input", _usage(error), code=WRONG_INPUT)
    except LowdimError as error:
        _fail(_heading(error), str(error), code=WRONG_INPUT, kind=type(error).__name__)
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nobody is there to be told.
        sys.stderr.close()
        raise SystemExit(DONE) from None
    except OSError as error:
        _fail("File or device", _os_message(error), code=WRONG_INPUT, kind=type(error).__name__)
    except Exception as error:
        text = (
            f"{type(error).__name__}: {error}\n\n"
            "This is a defect of lowdim or of the installation, not of your input. "
            "Add --debug to see where it happened, and run `lowdim doctor` to see what is installed."
        )
        _fail("Unexpected error", text, code=OURS, kind=type(error).__name__)


def emit(result: Any) -> None:
    """Write `result` as one JSON document on stdout.

    Parameters
    ----------
    result : object
        Dictionaries, lists, numbers, strings, or dataclass-like values with
        ``to_dict``. Numbers that JSON cannot write (NaN, infinity) become null.

    Examples
    --------
    >>> emit({"ratio": float("nan")})
    {
      "ratio": null
    }
    """
    text = json.dumps(_jsonable(result), indent=2, ensure_ascii=False, allow_nan=False)
    # Not sys.stdout.write alone: a terminal that cannot show a character must not end the command.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def progress(*, transient: bool = False) -> Progress:
    """Return a Rich progress display on stderr: what, how far, seconds left.

    Parameters
    ----------
    transient : bool
        Whether the lines vanish when the work is done.

    Returns
    -------
    rich.progress.Progress
        A context manager; on a pipe it shows nothing until the end.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


@contextmanager
def phases() -> Iterator[Callable[[str, int, int, str], None]]:
    """Show one line per phase: how far, seconds left, what is in work.

    Yields
    ------
    callable
        To be called with (phase, done, total, what is going on); the first phase is "read".
    """
    with progress() as display:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, total: int, text: str) -> None:
            if phase != "read" and "read" in tasks:
                display.update(tasks["read"], completed=1)
            if phase not in tasks:
                tasks[phase] = display.add_task(phase, total=total)
            shown = text.replace("[", "(").replace("]", ")")
            display.update(
                tasks[phase],
                completed=done,
                total=total,
                description=f"{phase:<8} [not bold dim]{shown}[/]" if shown else f"{phase:<8}",
            )

        try:
            yield tell
        except LowdimError:
            if len(tasks) == 1:  # refused at the door: nothing has begun that a line could tell of
                display.update(tasks["read"], visible=False)
            raise
        if len(tasks) == 1:  # a finished run was read again
            tell("read", 1, 1, "")


def typed() -> str:
    """Return the command as it was typed, without what concerns only this call."""
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--restart", "--debug")]
    return f"lowdim {shlex.join(words)}"


class Frame(TyperGroup):
    """The group of all commands: runs one under `errors`, also inside a test runner."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the chosen command."""
        token = _group.set(self)
        try:
            with errors():
                return super().invoke(ctx)
        finally:
            _group.reset(token)


def _fail(title: str, message: str, *, code: int, style: str = "red", kind: str | None = None) -> None:
    """Show one panel (after the traceback under ``--debug``) and leave."""
    if _current.get().debug:
        console.print(Text(traceback.format_exc().rstrip(), style="dim"))
    console.print(Panel(Text(message), title=title, title_align="left", border_style=style))
    if "--json" in _current.get().words:
        emit({"error": {"kind": kind or title, "message": message, "exit": code}})
    raise SystemExit(code) from None


def _heading(error: LowdimError) -> str:
    headings = {
        "ShapeError": "Shapes do not fit",
        "RankError": "Impossible rank",
        "BudgetError": "Impossible budget",
        "DataError": "Cannot use this input",
        "Diverged": "Diverged",
        "MissingExtra": "A package is missing",
        "RunError": "Run directory",
    }
    return headings.get(type(error).__name__, "Error")


def _usage(error: Any) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    if isinstance(context.command, TyperGroup) and message.startswith("No such command"):
        names = ", ".join(context.command.list_commands(context))
        # Click and Typer both append a suggestion: say it once.
        message = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", message)
        return f"{message}\nCommands: {names}."
    return f"{message}\nSee `{context.command_path} --help`."


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{reason}: {error.filename}" if error.filename else reason


def _resume_hint() -> str:
    """Return what to type to go on, for the commands that can."""
    words = [word for word in _current.get().words if word not in ("--resume", "--restart")]
    command: Any = _group.get()
    for word in words:  # down to the leaf: `claims run` is a command within a command
        if isinstance(command, TyperGroup) and word in command.commands:
            command = command.commands[word]
    if command is None or not any("--resume" in parameter.opts for parameter in command.params):
        return "Nothing was left half written."
    return (
        "What is finished is kept. To go on from there, run the same command with --resume:\n"
        f"lowdim {shlex.join([*words, '--resume'])}"
    )


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show our warnings as one readable line, those of others only under ``--debug``."""
    if issubclass(category, LowdimWarning):
        console.print(Text(f"Warning: {message}", style="yellow"))
    elif _current.get().debug:
        console.print(Text(warnings.formatwarning(message, category, filename, lineno).rstrip(), style="dim"))


def _jsonable(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if hasattr(value, "item"):  # a number of numpy or torch
        return _jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
