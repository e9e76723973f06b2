"""``lowdim dynamics``: where a training stands, while it runs and afterwards, and one to look at."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.errors import DataError, RunError

if TYPE_CHECKING:
    from lowdim.dynamics.runfile import DynamicsRun, RunFile

__all__ = ["register"]

RUN = "The run"

FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN.jsonl",
        help="What a lowdim.dynamics.Monitor writes; the training may still run.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for report.html and report.json.")
]


def register(app: typer.Typer) -> None:
    """Add ``lowdim dynamics watch`` and ``demo`` to the application."""
    group = typer.Typer(
        no_args_is_help=True, help="Watch a training: sharpness, edge of stability, oscillation, ranks."
    )
    app.add_typer(group, name="dynamics", rich_help_panel=manners.SYSTEM_PANEL)

    @group.command("watch")
    def watch(
        file: FileArgument,
        output: OutputOption = None,
        once: Annotated[
            bool, typer.Option("--once", help="Show the state and end; so do pipes and --json.")
        ] = False,
        refresh: Annotated[
            float, typer.Option("--refresh", metavar="SECONDS", help="How often to look for new reports.")
        ] = 1.0,
        idle: Annotated[
            float | None,
            typer.Option(
                "--idle",
                metavar="SECONDS",
                help="End when the file has not grown for so long; also makes pipes and --json wait.",
                show_default=False,
            ),
        ] = None,
        json: manners.JsonOption = False,
    ) -> None:
        """Show where a training stands, and follow it until Ctrl-C.

        With -o the report is written at the end.
        """
        for name, value in (("--refresh", refresh), ("--idle", idle)):
            if value is not None and not value > 0:
                raise DataError(f"{name} {value:g}: expected seconds above zero, such as 2.")
        if output is not None:
            _check(output)
        from lowdim.dynamics.runfile import RunFile, read_run

        if once or (idle is None and (json or not manners.out.is_terminal)):
            run = read_run(file)
        else:
            run = _follow(RunFile(file), refresh, idle, silent=json or not manners.out.is_terminal)
        report = _report(run)
        if output is not None:
            report["output"] = str(output)
            _write(report, output)
        if json:
            manners.emit(report)
            return
        _show(report, output)

    @group.command("demo")
    def demo(
        output: Annotated[
            Path | None,
            typer.Option("--output", "-o", help="Folder for run.jsonl, report.html and report.json."),
        ] = None,
        lr: Annotated[float, typer.Option("--lr", help="Learning rate; the edge is at 2 / lr.")] = 0.2,
        samples: Annotated[
            int,
            typer.Option("--samples", help="Images of digits, up to 1797; with 5 the edge is never reached."),
        ] = 300,
        steps: Annotated[int, typer.Option("--steps", help="Steps of gradient descent.")] = 2000,
        seed: Annotated[int, typer.Option("--seed", help="Of the first weights.")] = 0,
        resume: Annotated[
            bool, typer.Option("--resume", help="Show the finished run in OUT again, or begin one.")
        ] = False,
        restart: Annotated[
            bool, typer.Option("--restart", help="Throw the run in OUT away and begin anew.")
        ] = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Train a small network on digits with the Monitor on, and see it rise to the edge of stability."""
        with manners.phases() as progress:
            progress("read", 0, 1, "digits")
            from lowdim.dynamics.demo import demo as run

            found = run(
                samples=samples,
                lr=lr,
                steps=steps,
                seed=seed,
                progress=progress,
                output=output,
                resume=resume,
                restart=restart,
            )
        report = _report(found)
        if output is not None:
            report["output"] = str(output)
            _write(report, output)
        if json:
            manners.emit(report)
        else:
            _show(report, output)


def _follow(file: RunFile, refresh: float, idle: float | None, *, silent: bool) -> DynamicsRun:
    """Take in what is added to the file and show it, until Ctrl-C or silence."""
    from rich.live import Live

    from lowdim.dynamics.record import record

    grown, shown, said = time.monotonic(), None, ""
    with Live(console=manners.console if silent else manners.out, auto_refresh=False, transient=True) as live:
        try:
            while True:
                new = file.read()
                now = time.monotonic()
                grown = now if new else grown
                if idle is not None and now - grown >= idle:
                    break
                note = _note(now - grown)
                if not silent and (new or shown is None or note != said):
                    shown = record(file.run()) if new or shown is None else shown
                    said = note
                    live.update(_view(shown, note), refresh=True)
                time.sleep(refresh)
        except KeyboardInterrupt:
            pass  # the way to end it: what was seen so far is shown and written
    if not file.headers:
        raise DataError(f"{file.path.name} was empty to the end. Check that the training uses this file.")
    return file.run()


def _note(quiet: float) -> str:
    from lowdim.report.wording import duration

    still = f" Nothing new for {duration(quiet)}." if quiet >= 10 else ""
    return f"Ctrl-C ends the view, not the training.{still}"


def _report(run: DynamicsRun) -> dict[str, Any]:
    from lowdim.dynamics.record import record

    return {**record(run), "command": manners.typed()}


def _view(report: dict[str, Any], note: str = "") -> Any:
    from lowdim.report.dynamics_terminal import terminal_view

    blocks = manners.out.encoding.lower().startswith("utf")
    low = bool(note) and manners.out.height < 36
    return terminal_view(report, width=manners.out.width, low=low, blocks=blocks, note=note)


def _show(report: dict[str, Any], output: Path | None) -> None:
    out = manners.out
    out.print(_view(report))
    if report["findings"]:
        out.print("\nFindings", style="bold")
    for finding in report["findings"]:
        out.print(f"- {finding['sentence']}", highlight=False, markup=False)
    if output is None:
        out.print("\nNothing was written: add -o OUT for a report with figures.", style="dim")
    else:
        out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True, markup=False)


def _check(output: Path) -> None:
    """Refuse a folder that holds the report of something else."""
    from lowdim.runs import read_json

    if output.is_file():
        raise RunError(f"{output} is a file, expected a folder for the report. Choose another one with -o.")
    there = output / "report.json"
    if there.exists() or (output / "report.html").exists():
        found = read_json(there) if there.exists() else None
        if not isinstance(found, dict) or found.get("system") != "dynamics":
            raise RunError(
                f"{output} holds a report that is none of `lowdim dynamics`, and it would be lost. Choose "
                "another folder with -o."
            )


def _write(report: dict[str, Any], output: Path) -> None:
    """Write report.json and the page."""
    from lowdim.report import dynamics_page
    from lowdim.runs import atomic_json

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{output} cannot be used as an output folder: {error.strerror}. Choose another one with -o."
        ) from error
    atomic_json(output / "report.json", report)
    dynamics_page(report).write(output / "report.html")
