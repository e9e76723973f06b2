"""``lowdim incontext``: what models learn from examples in a prompt, and what a shift costs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.errors import DataError

if TYPE_CHECKING:
    from lowdim.incontext import StudyResult

__all__ = ["register"]


class Model(StrEnum):
    """Models on offer."""

    optimal = "optimal"
    linear = "linear"
    gpt2 = "gpt2"


class Family(StrEnum):
    """Classes of functions on offer."""

    linear = "linear"
    relu = "relu"
    single_index = "single-index"
    fourier = "fourier"


class Toward(StrEnum):
    """Where the tested subspace is turned to."""

    inside = "inside"
    outside = "outside"
    anywhere = "anywhere"


class Tokens(StrEnum):
    """How examples become tokens."""

    paired = "paired"
    alternating = "alternating"


class Baseline(StrEnum):
    """Baselines on offer."""

    zero = "zero"
    ridge = "ridge"
    least = "least squares"
    oracle = "oracle"


TASKS, TEST, TRAINING, RUN = "The tasks", "The test", "The training", "The run"


def _option(*names: str, panel: str, text: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


ModelArgument = Annotated[
    Model,
    typer.Argument(
        metavar="MODEL",
        help="optimal (linear attention in closed form), linear (the same, trained) or gpt2 (a small one).",
        show_default=False,
    ),
]
Size = Annotated[int, _option("-d", panel=TASKS, text="Dimension of inputs.")]
Dimension = Annotated[int, _option("-r", panel=TASKS, text="Dimension of each subspace; 2 r <= d.")]
Subspaces = Annotated[int, _option("--subspaces", panel=TASKS, text="Subspaces in training.")]
Noise = Annotated[float, _option("--noise", panel=TASKS, text="Standard deviation of the noise on labels.")]
FamilyOption = Annotated[
    Family, _option("--family", panel=TASKS, text="Functions of the inputs; all but linear for gpt2 only.")
]
Examples = Annotated[
    int | None,
    _option(
        "-n", panel=TASKS, text="Examples in a prompt in training; 100, of gpt2 2 d + 2.", show_default=False
    ),
]
Angles = Annotated[
    str, _option("--angles", panel=TEST, text="Angles of the shift in degrees, from 0 to 90, as 0,45,90.")
]
TowardOption = Annotated[
    Toward | None,
    _option(
        "--toward",
        panel=TEST,
        text="Where the first subspace is turned to: inside or outside of the span of all, or anywhere. By "
        "default inside of several, outside of one.",
        show_default=False,
    ),
]
Lengths = Annotated[
    str | None,
    _option(
        "--contexts", panel=TEST, text="Examples in a prompt at test, as 5,10,20; -n.", show_default=False
    ),
]
Prompts = Annotated[int, _option("--prompts", panel=TEST, text="Fresh prompts per angle.")]
Baselines = Annotated[
    list[Baseline] | None,
    _option(
        "--baseline",
        panel=TEST,
        text="Compare with this one; repeat it. Else zero, ridge, oracle.",
        show_default=False,
    ),
]
Ranks = Annotated[
    str | None,
    _option("--ranks", panel=TEST, text="Ranks of adapters to try, as 1,2,4.", show_default=False),
]
AdaptAngle = Annotated[
    float, _option("--adapt-angle", panel=TEST, text="Angle of the tasks that are adapted to, in degrees.")
]
AdaptSteps = Annotated[int, _option("--adapt-steps", panel=TEST, text="Steps of training of an adapter.")]
Steps = Annotated[
    int | None,
    _option("--steps", panel=TRAINING, text="3000 of linear, 2000 of gpt2.", show_default=False),
]
Batch = Annotated[
    int | None,
    _option("--batch", panel=TRAINING, text="Prompts per step: 256, of gpt2 64.", show_default=False),
]
Rate = Annotated[
    float | None,
    _option("--lr", panel=TRAINING, text="Learning rate: 1e-2, of gpt2 2e-3.", show_default=False),
]
Layers = Annotated[int, _option("--layers", panel=TRAINING, text="Layers of gpt2.")]
Heads = Annotated[int, _option("--heads", panel=TRAINING, text="Heads of gpt2.")]
Width = Annotated[int, _option("--width", panel=TRAINING, text="Width of gpt2, a multiple of its heads.")]
TokensOption = Annotated[
    Tokens,
    _option(
        "--tokens",
        panel=TRAINING,
        text="Whether the token of a label holds its input, too (paired): small models learn faster.",
    ),
]
OutputOption = Annotated[
    Path | None,
    _option("--output", "-o", panel=RUN, text="Folder for tables, weights, report.json and report.html."),
]
SeedOption = Annotated[int, _option("--seed", panel=RUN, text="For everything random.")]
SeedsOption = Annotated[
    int, _option("--seeds", panel=RUN, text="Repetitions with other subspaces, starts and prompts.")
]
DeviceOption = Annotated[str, _option("--device", panel=RUN, text="Where models are trained: cpu, cuda.")]
ResumeOption = Annotated[bool, _option("--resume", panel=RUN, text="Go on with the run in OUT.")]
RestartOption = Annotated[
    bool, _option("--restart", panel=RUN, text="Throw the run in OUT away and begin anew.")
]


def register(app: typer.Typer) -> None:
    """Add ``lowdim incontext`` to the application."""
    group = typer.Typer(
        no_args_is_help=True,
        help="In-context learning: train on tasks in subspaces, shift them by an angle, see what is left.",
    )
    app.add_typer(group, name="incontext", rich_help_panel=manners.SYSTEM_PANEL)

    @group.command("run")
    def run(
        model: ModelArgument,
        d: Size = 20,
        r: Dimension = 5,
        subspaces: Subspaces = 1,
        noise: Noise = 0.0,
        family: FamilyOption = Family.linear,
        n: Examples = None,
        angles: Angles = "0,15,30,45,60,75,90",
        toward: TowardOption = None,
        contexts: Lengths = None,
        prompts: Prompts = 2000,
        baseline: Baselines = None,
        ranks: Ranks = None,
        adapt_angle: AdaptAngle = 45.0,
        adapt_steps: AdaptSteps = 500,
        steps: Steps = None,
        batch: Batch = None,
        lr: Rate = None,
        layers: Layers = 4,
        heads: Heads = 4,
        width: Width = 64,
        tokens: TokensOption = Tokens.paired,
        output: OutputOption = None,
        seed: SeedOption = 0,
        seeds: SeedsOption = 1,
        device: DeviceOption = "cpu",
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Train on tasks in subspaces, shift them by an angle, and measure what the model still predicts.

        Risks over angles and context lengths stand beside those of theory (for linear attention) and of
        baselines; --ranks adds what adapters repair. Without -o the finding is shown and nothing is written.
        """
        given: dict[str, Any] = {
            "angles_deg": _numbers("--angles", angles, float),
            "context_lengths": None if contexts is None else _numbers("--contexts", contexts, int),
            "ranks": [] if ranks is None else _numbers("--ranks", ranks, int),
        }
        if baseline:
            given["baselines"] = [one.value for one in baseline]
        with manners.phases() as progress:
            progress("read", 0, 1, model.value)
            from lowdim.incontext import study

            result = study(
                model.value,
                d=d,
                r=r,
                subspaces=subspaces,
                noise=noise,
                family=family.value,
                n=n,
                toward=None if toward is None else toward.value,
                prompts=prompts,
                adapt_deg=adapt_angle,
                adapt_steps=adapt_steps,
                steps=steps,
                batch=batch,
                lr=lr,
                n_layer=layers,
                n_head=heads,
                n_embd=width,
                tokens=tokens.value,
                seed=seed,
                seeds=seeds,
                device=device,
                progress=progress,
                output=output,
                resume=resume,
                restart=restart,
                **given,
            )
        report = {**result.report, "command": manners.typed()}
        if output is not None:
            report["output"] = str(output)
            _write(report, output)
        if json:
            manners.emit(report)
        else:
            _show(result, output)

    @group.command("plot")
    def plot(
        runs: Annotated[
            list[Path],
            typer.Argument(
                metavar="OUT...", help="Folders that `lowdim incontext run` has written.", show_default=False
            ),
        ],
        output: Annotated[
            Path, typer.Option("--output", "-o", metavar="HTML", help="The page.", show_default=False)
        ],
        json: manners.JsonOption = False,
    ) -> None:
        """Draw one run or several on one page: risk over the angle, over the context, and adapters."""
        if not output.parent.is_dir():
            raise DataError(
                f"--output {output}: there is no folder {output.parent}. Make it, or choose another."
            )
        from lowdim.incontext import StudyResult
        from lowdim.report import incontext_page

        # The last parts of paths where they tell runs apart: names stand in every legend.
        last = [folder.resolve().name for folder in runs]
        names = last if len(set(last)) == len(runs) else [str(folder) for folder in runs]
        loaded = [StudyResult.load(folder).report for folder in runs]
        reports = dict(zip(names, loaded, strict=True))
        incontext_page(*loaded, names=names).write(output)
        if json:
            manners.emit(
                {"output": str(output), "runs": {name: one["sentence"] for name, one in reports.items()}}
            )
            return
        for name, report in reports.items():
            manners.out.print(f"{name}: {report['sentence']}", highlight=False, markup=False)
        manners.out.print(f"\nPage: {output}", highlight=False, soft_wrap=True)


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        what = "whole numbers such as 1,2,4" if kind is int else "numbers such as 0,45,90"
        raise DataError(f"{option} {text}: expected {what}.") from None


def _write(report: dict[str, Any], output: Path) -> None:
    """Add how it was called to report.json, and write the page."""
    from lowdim.report import incontext_page
    from lowdim.runs import atomic_json

    atomic_json(output / "report.json", report)
    incontext_page(report).write(output / "report.html")


def _show(result: StudyResult, output: Path | None) -> None:
    """Print risks over the angle, those after adapters, and the finding."""
    from rich.table import Table

    out, report = manners.out, result.report
    longest = result.risks["n"].max()
    own = result.risks[result.risks["n"] == longest]
    wide = own.pivot_table(index="angle_deg", columns="predictor", values="relative", sort=False)
    title = f"Risk over the variance of labels, {longest} examples"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("Degrees", justify="right")
    for name in wide.columns:
        table.add_column(str(name).capitalize(), justify="right", no_wrap=True)
    for angle, row in wide.iterrows():
        table.add_row(f"{angle:g}", *(f"{value:.4g}" for value in row))
    out.print(table)
    if len(result.adapters):
        wide = result.adapters.pivot_table(index="rank", columns="method", values="relative", sort=False)
        title = f"The same after an adapter for {result.adapters['angle_deg'].iloc[0]:g} degrees"
        table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("Rank", justify="right")
        for name in wide.columns:
            table.add_column(str(name).capitalize(), justify="right", no_wrap=True)
        for rank, row in wide.iterrows():
            table.add_row(str(rank), *(f"{value:.4g}" for value in row))
        out.print(table)
    out.print(f"\n{report['sentence']}", highlight=False, markup=False)
    if output is None:
        out.print("\nNothing was written: add -o OUT to keep tables, weights and report.", style="dim")
    else:
        out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True)
