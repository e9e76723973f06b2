"""``lowdim track``: does the subspace of frames with gaps move, how, and what fills the gaps in."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lowdim.cli import manners
from lowdim.errors import DataError

if TYPE_CHECKING:
    from lowdim.track import TrackResult

__all__ = ["register"]


class Model(StrEnum):
    """Models on offer."""

    auto = "auto"
    static = "static"
    geodesic = "geodesic"
    piecewise = "piecewise"
    grouse = "grouse"
    petrels = "petrels"
    grasta = "grasta"
    window = "window"


DATA, WORK, RUN = "The data", "What is done", "The run"

FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="CSV, TSV, Parquet, NPY, NPZ, a TIFF or GIF with several frames, or a folder of images.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder for the filled-in data, the model, report.json and report.html.",
        rich_help_panel=RUN,
    ),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="NAME",
        help="Column of the times, numbers or dates; else the first column if it holds dates.",
        rich_help_panel=DATA,
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME",
        help="Read this column; repeat it. By default all but the times.",
        rich_help_panel=DATA,
    ),
]
ComponentsOption = Annotated[
    str,
    typer.Option(
        "--components", "-k", help="Dimension of the subspace: auto, or a number.", rich_help_panel=WORK
    ),
]
ModelOption = Annotated[
    Model,
    typer.Option(
        "--model",
        help="auto is the geodesic if the subspace moves, else the subspace at rest (static).",
        rich_help_panel=WORK,
    ),
]
HeldOutOption = Annotated[
    float,
    typer.Option(
        "--held-out", help="Fraction of the observed entries to compare models on.", rich_help_panel=WORK
    ),
]
RidgeOption = Annotated[
    float,
    typer.Option("--ridge", help="Raise it to 0.01 where frames show few entries.", rich_help_panel=WORK),
]
StartsOption = Annotated[
    int, typer.Option("--starts", help="Starts of the geodesic; the best is kept.", rich_help_panel=WORK)
]
DrawsOption = Annotated[
    int,
    typer.Option(
        "--draws",
        help="Average so many curves drawn given the data; 60 where few entries were seen.",
        rich_help_panel=WORK,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="For everything random.", rich_help_panel=RUN)]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in OUT.", rich_help_panel=RUN)
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Throw the run in OUT away and begin anew.", rich_help_panel=RUN)
]


def register(app: typer.Typer) -> None:
    """Add ``lowdim track`` to the application."""

    @app.command(rich_help_panel=manners.SYSTEM_PANEL)
    def track(
        file: FileArgument,
        output: OutputOption = None,
        time: TimeOption = None,
        column: ColumnOption = None,
        components: ComponentsOption = "auto",
        model: ModelOption = Model.auto,
        held_out: HeldOutOption = 0.1,
        ridge: RidgeOption = 1e-6,
        starts: StartsOption = 1,
        draws: DrawsOption = 0,
        seed: SeedOption = 0,
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Follow a subspace that turns with time through data with gaps, and fill the gaps in.

        Models at rest and in motion are compared on entries that are hidden from them. Without -o the finding
        is shown and nothing is written.
        """
        k = _components(components)
        with manners.phases() as progress:
            progress("read", 0, 1, file.name)
            from lowdim.track import track as run

            result = run(
                file,
                n_components=k,
                model=model.value,
                time=time,
                columns=column,
                held_out=held_out,
                ridge=ridge,
                n_init=starts,
                draws=draws,
                seed=seed,
                progress=progress,
                output=output,
                resume=resume,
                restart=restart,
            )
        report = {**result.report, "command": manners.typed()}
        if output is not None:
            report["output"] = str(output)
            _write(report, output)
        if json:
            manners.emit(report)
        else:
            _show(result, output)


def _components(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise DataError(f"--components {text}: expected auto, or a number such as 3.")
    return int(text)


def _write(report: dict[str, Any], output: Path) -> None:
    """Add how it was called to report.json, and write the page."""
    from lowdim.report import track_page
    from lowdim.runs import atomic_json

    atomic_json(output / "report.json", report)
    track_page(report).write(output / "report.html")


def _show(result: TrackResult, output: Path | None) -> None:
    """Print the comparison, then the finding, how far it went, and what was filled in."""
    from rich.table import Table

    out, report = manners.out, result.report
    table = Table(
        title="Error on hidden entries",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("Model")
    for heading in ("Components", "Error", "Relative", "Unknowns"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["comparison"]["table"]:
        chosen = (row["model"], row["n_components"]) == (report["model"], report["n_components"])
        cells = [row["model"], str(row["n_components"]), f"{row['error']:.4g}", f"{row['relative']:.1%}"]
        table.add_row(*cells, f"{row['unknowns']:,}", style="bold" if chosen else "")
    out.print(table)
    out.print(f"\n{report['comparison']['sentence']}", highlight=False)
    k = report["n_components"]
    what = f"Model: {report['model']}, {k} component{'s' * (k > 1)}"
    turned = "" if report["model"] == "static" else f"; it turned by {report['turned']:.1f} degrees"
    out.print(f"{what}{turned}.", highlight=False)
    out.print(_gaps(report), highlight=False)
    for note in report["notes"]:
        out.print(f"Note: {note}", style="dim", highlight=False, markup=False)
    if output is None:
        out.print("\nNothing was written: add -o OUT to keep data, model and report.", style="dim")
    else:
        out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True)


def _gaps(report: dict[str, Any]) -> str:
    if not report["missing"]:
        return "Nothing was missing."
    left = f"; {report['left_empty']:,} stay empty" if report["left_empty"] else ""
    return f"{report['missing']:.1%} of the entries were missing: {report['filled']:,} filled in{left}."
