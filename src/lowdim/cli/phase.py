"""``lowdim phase``: frames from magnitudes of their measurements, and how many of these it takes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lowdim.cli import manners
from lowdim.errors import DataError, RankError

if TYPE_CHECKING:
    from lowdim.phase import PhaseResult, Transition

__all__ = ["register"]


class Method(StrEnum):
    """Methods on offer."""

    tucker = "tucker"
    lowrank = "lowrank"
    rwf = "rwf"


class Init(StrEnum):
    """Starts on offer."""

    auto = "auto"
    joint = "joint"
    grow = "grow"
    frame = "frame"
    random = "random"


class Kind(StrEnum):
    """Maps on offer."""

    gaussian = "gaussian"
    complex_gaussian = "complex-gaussian"
    coded_diffraction = "coded-diffraction"
    ptychography = "ptychography"


DATA, WORK, RUN = "The data", "What is done", "The run"

FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.npz",
        help="Arrays y (magnitudes, frames x measurements) or intensities; A, or masks (and kept), or probe "
        "and positions; image_shape; if known, frames (the truth) and weights.",
        show_default=False,
    ),
]
VideoArgument = Annotated[
    Path,
    typer.Argument(
        metavar="VIDEO",
        help="NPY, NPZ, a TIFF or GIF with several frames, a folder of images, or MP4 (with imageio).",
        show_default=False,
    ),
]
MethodOption = Annotated[
    Method,
    typer.Option(
        "--method",
        help="One Tucker tensor of all frames, one matrix of low rank, or frame by frame.",
        rich_help_panel=WORK,
    ),
]
RanksOption = Annotated[
    str,
    typer.Option(
        "--ranks",
        "-r",
        help="auto, or as 8,8,3: of rows, columns and frames. For lowrank one number.",
        rich_help_panel=WORK,
    ),
]
InitOption = Annotated[Init, typer.Option("--init", help="First start.", rich_help_panel=WORK)]
StartsOption = Annotated[
    int, typer.Option("--starts", help="Starts at most; the best end is kept.", rich_help_panel=WORK)
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--max-iter",
        help="Sweeps at most; 100, or of rwf 300 gradient steps.",
        show_default=False,
        rich_help_panel=WORK,
    ),
]
RobustOption = Annotated[
    bool, typer.Option("--robust", help="For a few per cent of outliers.", rich_help_panel=WORK)
]
RealOption = Annotated[
    bool, typer.Option("--real", help="Frames are real, though the map is complex.", rich_help_panel=WORK)
]
GateOption = Annotated[
    float | None,
    typer.Option(
        "--max-unexplained",
        help="Exit with 1 if a larger fraction of the magnitudes stays unexplained, such as 0.1.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder for frames, model, report.json and report.html.",
        rich_help_panel=RUN,
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="HxW", help="Bring frames to this size, as 24x24.", rich_help_panel=DATA),
]
FramesOption = Annotated[
    int | None,
    typer.Option("--frames", help="Take so many frames, evenly picked.", rich_help_panel=DATA),
]
KindOption = Annotated[Kind, typer.Option("--kind", help="How frames are measured.", rich_help_panel=WORK)]
NoiseOption = Annotated[
    float,
    typer.Option(
        "--noise",
        help="Standard deviation, relative to the root mean square magnitude.",
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
    """Add ``lowdim phase recover``, ``simulate`` and ``transition`` to the application."""
    group = typer.Typer(
        no_args_is_help=True, help="Recover videos from magnitudes of too few measurements per frame."
    )
    app.add_typer(group, name="phase", rich_help_panel=manners.SYSTEM_PANEL)

    @group.command("recover")
    def recover(
        file: FileArgument,
        output: OutputOption = None,
        method: MethodOption = Method.tucker,
        ranks: RanksOption = "auto",
        init: InitOption = Init.auto,
        starts: StartsOption = 4,
        max_iter: StepsOption = None,
        robust: RobustOption = False,
        real: RealOption = False,
        max_unexplained: GateOption = None,
        seed: SeedOption = 0,
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Recover the frames of a recording.

        Without -o the finding is shown and nothing is written.
        """
        given = _ranks(ranks, method)
        if max_unexplained is not None and not max_unexplained > 0:
            raise DataError(f"--max-unexplained {max_unexplained:g}: expected a fraction such as 0.1.")
        with manners.phases() as progress:
            progress("read", 0, 1, file.name)
            from lowdim.phase import recover as run

            result = run(
                file,
                method=method.value,
                ranks=given,
                init=init.value,
                n_init=starts,
                max_iter=max_iter,
                robust=robust,
                real=True if real else None,
                seed=seed,
                progress=progress,
                output=output,
                resume=resume,
                restart=restart,
            )
        report = {**result.report, "command": manners.typed()}
        report.pop("gate", None)  # of an earlier call
        passed = True
        if max_unexplained is not None:
            passed = report["unexplained"]["total"] <= max_unexplained
            report["gate"] = {"max_unexplained": max_unexplained, "passed": passed}
        if output is not None:
            report["output"] = str(output)
            _write("phase", report, output)
        if json:
            manners.emit(report)
        else:
            _show(result, report, output)
        if not passed:
            raise typer.Exit(manners.GATE_FAILED)

    @group.command("simulate")
    def simulate(
        video: VideoArgument,
        output: Annotated[
            Path,
            typer.Option("--output", "-o", metavar="FILE.npz", help="The recording.", rich_help_panel=RUN),
        ],
        kind: KindOption = Kind.gaussian,
        measurements: Annotated[
            float,
            typer.Option("--measurements", "-m", help="Per pixel, m / n.", rich_help_panel=WORK),
        ] = 0.5,
        noise: NoiseOption = 0.0,
        outliers: Annotated[
            float,
            typer.Option(
                "--outliers", help="Fraction of magnitudes replaced at random.", rich_help_panel=WORK
            ),
        ] = 0.0,
        size: SizeOption = None,
        frames: FramesOption = None,
        seed: SeedOption = 0,
        restart: Annotated[
            bool, typer.Option("--restart", help="Write over FILE.npz.", rich_help_panel=RUN)
        ] = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Measure a video at random, and keep the magnitudes: a recording with known truth."""
        shape = _size(size)
        if output.exists() and not restart:
            raise DataError(f"{output} is there already. Add --restart to write over it, or choose another.")
        if not output.parent.is_dir():
            raise DataError(f"There is no folder {output.parent} to write {output.name} to. Make it first.")
        if output.suffix.lower() != ".npz":
            raise DataError(f"{output.name} must end in .npz. Choose such a name.")
        with manners.phases() as progress:
            progress("read", 0, 1, video.name)
            from lowdim.phase import read_film
            from lowdim.phase import simulate as run

            film = read_film(video, size=shape, frames=frames)
            progress("measure", 0, 1, kind.value)
            recording = run(
                film,
                kind=kind.value,
                measurements=measurements,
                noise=noise,
                outliers=outliers,
                seed=seed,
            )
            recording.save(output)
            progress("measure", 1, 1, "")
        q, m = recording.y.shape
        if json:
            manners.emit(
                {
                    "output": str(output),
                    "frames": q,
                    "image_shape": list(recording.image_shape),
                    "measurements": m,
                    "ratio": recording.ratio,
                    "map": recording.kind,
                    "bytes": output.stat().st_size,
                }
            )
            return
        sizes = " x ".join(map(str, recording.image_shape))
        manners.out.print(
            f"{q} frames of {sizes} pixels, {m} magnitudes each ({recording.ratio:.0%} of the pixels), by "
            f"{recording.kind}.",
            highlight=False,
        )
        manners.out.print(f"Recording: {output}", highlight=False, soft_wrap=True)

    @group.command("transition")
    def transition(
        video: VideoArgument,
        ranks: Annotated[
            str,
            typer.Option(
                "--ranks", "-r", help="Of tucker, as 8,8,3.", show_default=False, rich_help_panel=WORK
            ),
        ],
        output: OutputOption = None,
        rank: Annotated[
            int | None,
            typer.Option("--rank", help="Of lowrank; by default the last of --ranks.", rich_help_panel=WORK),
        ] = None,
        method: Annotated[
            list[Method] | None,
            typer.Option("--method", help="Try this one; repeat it. All by default.", rich_help_panel=WORK),
        ] = None,
        grid: Annotated[
            str | None,
            typer.Option(
                "--grid",
                help="Measurements per pixel to try; 0.3 to 1 by default, 1 to 4 for ptychography.",
                rich_help_panel=WORK,
            ),
        ] = None,
        seeds: Annotated[
            int, typer.Option("--seeds", help="Draws of the map for each.", rich_help_panel=WORK)
        ] = 1,
        kind: KindOption = Kind.gaussian,
        noise: NoiseOption = 0.0,
        starts: StartsOption = 4,
        max_iter: StepsOption = None,
        size: SizeOption = None,
        frames: FramesOption = None,
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Measure a video more and less often, and see which methods recover it."""
        given, shape, tried = _numbers(ranks), _size(size), None if grid is None else _fractions(grid)
        with manners.phases() as progress:
            progress("read", 0, 1, video.name)
            from lowdim.phase import read_film
            from lowdim.phase import transition as run

            options: dict[str, Any] = {"methods": [one.value for one in method]} if method else {}
            result = run(
                read_film(video, size=shape, frames=frames),
                ranks=given,
                rank=rank,
                grid=tried,
                seeds=seeds,
                kind=kind.value,
                noise=noise,
                n_init=starts,
                max_iter=max_iter,
                name=video.name,
                progress=progress,
                output=output,
                resume=resume,
                restart=restart,
                **options,
            )
        report = {**result.report, "command": manners.typed()}
        if output is not None:
            report["output"] = str(output)
            _write("transition", report, output)
        if json:
            manners.emit(report)
        else:
            _show_transition(result, output)


def _ranks(text: str, method: Method) -> Any:
    if text == "auto":
        return "auto"
    numbers = _numbers(text)
    return numbers[0] if method is Method.lowrank and len(numbers) == 1 else numbers


def _numbers(text: str) -> tuple[int, ...]:
    words = text.replace("x", ",").split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() and int(word) > 0 for word in words):
        raise RankError(f"--ranks {text}: expected positive numbers such as 8,8,3.")
    return tuple(int(word) for word in words)


def _fractions(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise DataError(f"--grid {text}: expected numbers such as 0.3,0.5,1.0.") from None


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    words = text.lower().split("x")
    if len(words) not in (1, 2) or not all(word.isascii() and word.isdigit() for word in words):
        raise DataError(f"--size {text}: expected height x width in pixels, such as 24x24.")
    return int(words[0]), int(words[-1])


def _write(page: Literal["phase", "transition"], report: dict[str, Any], output: Path) -> None:
    """Add how it was called to report.json, and write the page."""
    from lowdim.report import phase_page, transition_page
    from lowdim.runs import atomic_json

    atomic_json(output / "report.json", report)
    (phase_page if page == "phase" else transition_page)(report).write(output / "report.html")


def _show(result: PhaseResult, report: dict[str, Any], output: Path | None) -> None:
    """Print the rank candidates, the finding, and what is to be noted."""
    from rich.table import Table

    out, choice = manners.out, report["choice"]
    if choice is not None:
        table = Table(
            title="Ranks, judged by measurements left out of the fit",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        table.add_column("Ranks")
        for heading in ("Unknowns", "Unexplained"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in choice["candidates"]:
            cells = [
                ", ".join(map(str, row["ranks"])),
                f"{row['unknowns']:,}",
                f"{row['held_out'] ** 0.5:.2%}",
            ]
            table.add_row(*cells, style="bold" if row["ranks"] == report["ranks"] else "")
        out.print(table)
        out.print()
    out.print(result.summary(), highlight=False)
    for note in report["notes"]:
        out.print(f"Note: {note}", style="dim", highlight=False, markup=False)
    if "gate" in report and not report["gate"]["passed"]:
        out.print(f"More than {report['gate']['max_unexplained']:.1%} stays unexplained.", style="red")
    _show_output(output)


def _show_transition(result: Transition, output: Path | None) -> None:
    """Print the median errors."""
    from rich.table import Table

    table = Table(
        title="Relative error (median over seeds)", title_justify="left", title_style="bold", box=None
    )
    wide = result.medians()
    table.add_column("m / n", justify="right")
    for name in wide.columns:
        table.add_column(name, justify="right", no_wrap=True)
    for ratio, row in wide.iterrows():
        table.add_row(f"{ratio:g}", *(f"{value:.2g}" for value in row))
    manners.out.print(table)
    _show_output(output)


def _show_output(output: Path | None) -> None:
    if output is None:
        manners.out.print("\nNothing was written: add -o OUT to keep the result and a report.", style="dim")
    else:
        manners.out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True)
