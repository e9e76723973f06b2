"""``lowdim regress``: predict numbers or classes from images, volumes and tables with few samples."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from lowdim.regress import RegressResult

__all__ = ["register"]


class Task(StrEnum):
    """What is predicted."""

    auto = "auto"
    regression = "regression"
    classification = "classification"


class Form(StrEnum):
    """Forms of the coefficients."""

    cp = "cp"
    tucker = "tucker"


class Loss(StrEnum):
    """Losses of classification."""

    logistic = "logistic"
    hinge = "squared_hinge"


DATA, WORK, RUN = "The data", "What is done", "The run"

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="CSV, TSV, NPZ, NPY, a folder of images or NIfTI volumes (one per sample; a subfolder per "
        "class), or one NIfTI series.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder for the model, report.json and report.html.", rich_help_panel=RUN
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="Column or array to predict; y, target or label by default.",
        rich_help_panel=DATA,
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="CSV",
        help="Targets of a folder (a column names its files) or of an array (one row per sample).",
        rich_help_panel=DATA,
    ),
]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        metavar="FILE",
        help="NIfTI, NPY or image: look only where it is not zero.",
        rich_help_panel=DATA,
    ),
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="N1xN2",
        help="Modes of samples that are laid flat, such as 32x32.",
        rich_help_panel=DATA,
    ),
]
TaskOption = Annotated[
    Task,
    typer.Option(
        "--task",
        help="auto takes words, and whole numbers of at most ten values, for classes.",
        rich_help_panel=WORK,
    ),
]
RankOption = Annotated[
    str,
    typer.Option(
        "--rank",
        "-r",
        help="auto (1 to 3), or ranks to choose from: 2 or 1,2,4; Tucker also 2x3x2.",
        rich_help_panel=WORK,
    ),
]
AlphaOption = Annotated[
    str,
    typer.Option(
        "--alpha", help="auto, or penalties to choose from: 0.1 or 0.01,0.1,1.", rich_help_panel=WORK
    ),
]
FormOption = Annotated[Form, typer.Option("--form", help="Form of the coefficients.", rich_help_panel=WORK)]
LossOption = Annotated[Loss, typer.Option("--loss", help="Of classification.", rich_help_panel=WORK)]
FoldsOption = Annotated[
    int, typer.Option("--folds", help="Parts of the samples for cross-validation.", rich_help_panel=WORK)
]
StartsOption = Annotated[
    int, typer.Option("--starts", help="Starts of every fit; the best is kept.", rich_help_panel=WORK)
]
SeedOption = Annotated[int, typer.Option("--seed", help="For everything random.", rich_help_panel=RUN)]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Read the finished run in OUT again.", rich_help_panel=RUN)
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Throw the run in OUT away and begin anew.", rich_help_panel=RUN)
]


def register(app: typer.Typer) -> None:
    """Add ``lowdim regress fit`` and ``lowdim regress predict`` to the application."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Predict numbers or classes from images, volumes and other arrays, with few samples.",
    )
    app.add_typer(group, name="regress", rich_help_panel=manners.SYSTEM_PANEL)

    @group.command("fit")
    def fit(
        data: DataArgument,
        output: OutputOption = None,
        target: TargetOption = None,
        labels: LabelsOption = None,
        mask: MaskOption = None,
        shape: ShapeOption = None,
        task: TaskOption = Task.auto,
        rank: RankOption = "auto",
        alpha: AlphaOption = "auto",
        form: FormOption = Form.cp,
        loss: LossOption = Loss.logistic,
        folds: FoldsOption = 5,
        starts: StartsOption = 1,
        seed: SeedOption = 0,
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Fit coefficients of low tensor rank, and show how well they predict samples they have not seen.

        Rank and penalty are chosen by cross-validation; the plain model with one coefficient per place is
        judged on the same samples. Without -o the finding is shown and nothing is written.
        """
        ranks = None if rank == "auto" else [_rank(word) for word in rank.split(",")]
        alphas = None if alpha == "auto" else [_number(word) for word in alpha.split(",")]
        modes = None if shape is None else _modes("--shape", shape)
        with manners.phases() as progress:
            progress("read", 0, 1, data.name)
            from lowdim.regress import regress as run

            result = run(
                data,
                target=target,
                labels=labels,
                mask=mask,
                shape=modes,
                task=task.value,
                ranks=ranks,
                alphas=alphas,
                decomposition=form.value,
                loss=loss.value,
                folds=folds,
                n_init=starts,
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

    @group.command("predict")
    def predict(
        model: Annotated[
            Path,
            typer.Argument(
                metavar="OUT", help="Folder that `lowdim regress fit` has written.", show_default=False
            ),
        ],
        data: DataArgument,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", metavar="CSV", help="Write the predictions here.")
        ] = None,
        target: TargetOption = None,
        labels: LabelsOption = None,
        json: manners.JsonOption = False,
    ) -> None:
        """Predict new samples with a fitted model; where their targets are known, say how well."""
        from lowdim.regress import RegressResult

        result = RegressResult.load(model)
        table = result.predict(data, target=target, labels=labels)
        score = result.score(table)
        if output is not None:
            from lowdim.runs import atomic_write

            if not output.parent.is_dir():
                raise DataError(
                    f"--output {output}: there is no folder {output.parent}. Make it, or choose another."
                )
            atomic_write(output, table.to_csv(index=False))
        if json:
            from lowdim.runs import plain

            rows = plain(table.to_dict("records"))
            manners.emit({"predictions": rows, "score": score, "output": output and str(output)})
        else:
            _show_predictions(table, score, result.report["task"], output)


def _rank(word: str) -> int | tuple[int, ...]:
    modes = _modes("--rank", word)
    return modes[0] if len(modes) == 1 else modes


def _modes(option: str, text: str) -> tuple[int, ...]:
    words = text.strip().lower().split("x")
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        expected = (
            "auto, a number, or several such as 1,2 or 2x3x2" if option == "--rank" else "sizes such as 32x32"
        )
        raise DataError(f"{option} {text}: expected {expected}.")
    return tuple(int(word) for word in words)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"--alpha {text}: expected auto, a number, or several such as 0.01,0.1.") from None


def _write(report: dict[str, Any], output: Path) -> None:
    """Add how it was called to report.json, and write the page."""
    from lowdim.report import regress_page
    from lowdim.runs import atomic_json

    atomic_json(output / "report.json", report)
    regress_page(report).write(output / "report.html")


def _show(result: RegressResult, output: Path | None) -> None:
    """Print the finding, the candidates, and what was chosen."""
    from rich.table import Table

    out, report = manners.out, result.report
    classifier = report["task"] == "classification"
    found = report["comparison"]
    table = Table(title="Candidates", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in (
        "Rank",
        "Penalty",
        "Loss on held-out samples",
        "Correct" if classifier else "Variance explained",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    best = min(range(len(found["mean_loss"])), key=lambda i: found["mean_loss"][i])
    for i, (rank, alpha, loss, score) in enumerate(
        zip(found["rank"], found["alpha"], found["mean_loss"], found["mean_score"], strict=True)
    ):
        named = "x".join(map(str, rank)) if isinstance(rank, list) else str(rank)
        cells = [named if report["rank"] is not None else "-", f"{alpha:.3g}", f"{loss:.4g}", f"{score:.1%}"]
        table.add_row(*cells, style="bold" if i == best else "")
    out.print(table)
    out.print(f"\n{report['sentence']}", highlight=False, markup=False)
    rank = f", rank {report['rank']}" if report["rank"] is not None else ""
    out.print(
        f"Model: {report['form']}{rank}, {report['parameters']:,} parameters; {report['samples']} samples.",
        highlight=False,
        markup=False,
    )
    for note in report["notes"]:
        out.print(f"Note: {note}", style="dim", highlight=False, markup=False)
    if output is None:
        out.print("\nNothing was written: add -o OUT to keep model and report.", style="dim")
    else:
        out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True)


SHOWN = 20
"""Predictions that are printed."""


def _cell(value: Any) -> str:
    """Return a number with four digits, other values as they are, unknown targets as nothing."""
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show_predictions(table: pd.DataFrame, score: float | None, task: str, output: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for column in table.columns:
        shown.add_column(str(column), justify="left" if column == "sample" else "right", overflow="fold")
    for row in table.head(SHOWN).itertuples(index=False):
        shown.add_row(*(Text(_cell(cell)) for cell in row))
    manners.out.print(shown)
    if len(table) > SHOWN:
        manners.out.print(f"... and {len(table) - SHOWN} more: add -o FILE.csv for all.", style="dim")
    if score is not None:
        what = (
            f"{score:.1%} of the labels are correct"
            if task == "classification"
            else f"{score:.1%} of the variance is explained"
        )
        known = int(table["target"].notna().sum())
        manners.out.print(f"\n{what} ({known} samples).", highlight=False)
    if output is not None:
        manners.out.print(f"\nPredictions: {output}", highlight=False, soft_wrap=True)
