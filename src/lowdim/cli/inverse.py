"""``lowdim inverse``: images from measurements with a diffusion prior, by one solver or several."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.errors import DataError

__all__ = ["register"]


class Degradation(StrEnum):
    """Operators on offer."""

    blur = "blur"
    sr = "sr"
    inpaint = "inpaint"
    ct = "ct"
    saturate = "saturate"
    denoise = "denoise"


class Fit(StrEnum):
    """What to do with images of another size."""

    resize = "resize"
    crop = "crop"


DATA, SEEN, WORK, RUN = "The data", "How it is seen", "What is done", "The run"

OPTIONS = {
    "--scale": ("factor", ("sr",)),
    "--blur-std": ("std", ("blur", "saturate")),
    "--kernel": ("kernel", ("blur",)),
    "--missing": ("missing", ("inpaint",)),
    "--box": ("box", ("inpaint",)),
    "--mask": ("mask", ("inpaint",)),
    "--angles": ("angles", ("ct",)),
    "--gain": ("gain", ("saturate",)),
}
"""Options of operators: what the library calls them, and whose they are."""

COLUMNS = {
    **{"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "residual": "Residual", "network_calls": "Network"},
    **{"decoder_calls": "Decoder", "iterations": "Steps", "seconds": "Seconds"},
}
"""Of the table of solvers: PSNR in dB, residual over sigma^2, and per image calls and steps of optimizers."""

NOISE = 0.01
"""Of simulated measurements, unless told otherwise."""

ImagesArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="IMAGE|FOLDER",
        help="True images (PNG, JPEG, TIFF, BMP, NPY): they are measured and compared with. May be left out "
        "where --measurement is given.",
        show_default=False,
    ),
]
MeasurementOption = Annotated[
    Path | None,
    typer.Option(
        "--measurement",
        help="Given measurements: NPY, or an image or a folder of them.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
FitOption = Annotated[
    Fit | None,
    typer.Option(
        "--fit",
        help="Bring images to the size the prior knows: scaled until they cover it, or their middle.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
OperatorOption = Annotated[
    Degradation,
    typer.Option("--operator", help="What images are seen through.", rich_help_panel=SEEN),
]
SigmaOption = Annotated[
    float | None,
    typer.Option(
        "--sigma",
        help=f"Standard deviation of the noise, of images from 0 to 1. {NOISE} of simulated measurements.",
        show_default=False,
        rich_help_panel=SEEN,
    ),
]


def _option(name: str, of: str, text: str) -> Any:
    return typer.Option(name, help=f"{of}: {text}", show_default=False, rich_help_panel=SEEN)


ScaleOption = Annotated[int | None, _option("--scale", "sr", "pixels a side that become one; 4.")]
StdOption = Annotated[
    float | None, _option("--blur-std", "blur, saturate", "standard deviation in pixels; 1.5, 0.8.")
]
KernelOption = Annotated[
    Path | None, _option("--kernel", "blur", "its kernel, an image or NPY, divided by its sum.")
]
MissingOption = Annotated[
    float | None, _option("--missing", "inpaint", "share of pixels hidden at random; 0.7.")
]
BoxOption = Annotated[
    float | None, _option("--box", "inpaint", "share of each side that a hidden box in the middle takes.")
]
MaskOption = Annotated[
    Path | None, _option("--mask", "inpaint", "an image that is dark where nothing is seen.")
]
AnglesOption = Annotated[int | None, _option("--angles", "ct", "directions; 30.")]
GainOption = Annotated[float | None, _option("--gain", "saturate", "slope before it saturates; 2.")]
PriorOption = Annotated[
    str,
    typer.Option(
        "--prior",
        metavar="FOLDER|builtin|builtin-latent",
        help="A pipeline of diffusers or a saved mixture; the built-in ones know 8 x 8 digits.",
        rich_help_panel=WORK,
    ),
]
SolverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--solver",
        metavar="NAME[:OPTION=VALUE,...]",
        help="dcdp-without-noise (the default), dcdp (of latent priors the default), dps; of latent priors "
        "resample; of deepinv ddrm, diffpir, tv, pinv. With options as in dps:steps=100 or tv:weight=0.05. "
        "Repeat it to compare.",
        show_default=False,
        rich_help_panel=WORK,
    ),
]
BatchOption = Annotated[int, typer.Option("--batch", help="Images at once.", rich_help_panel=RUN)]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder for images, report.json and report.html.", rich_help_panel=RUN
    ),
]
GateOption = Annotated[
    float | None,
    typer.Option(
        "--min-psnr",
        help="Exit with 1 if no solver reaches so many dB on average.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="For everything random.", rich_help_panel=RUN)]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...", rich_help_panel=RUN)]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in OUT.", rich_help_panel=RUN)
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Throw the run in OUT away and begin anew.", rich_help_panel=RUN)
]


def register(app: typer.Typer) -> None:
    """Add ``lowdim inverse reconstruct`` and ``compare`` to the application."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Reconstruct images from measurements, with a diffusion model as the prior.",
    )
    app.add_typer(group, name="inverse", rich_help_panel=manners.SYSTEM_PANEL)

    @group.command("reconstruct")
    def reconstruct(
        images: ImagesArgument = None,
        operator: OperatorOption = Degradation.sr,
        output: OutputOption = None,
        measurement: MeasurementOption = None,
        fit: FitOption = None,
        sigma: SigmaOption = None,
        scale: ScaleOption = None,
        blur_std: StdOption = None,
        kernel: KernelOption = None,
        missing: MissingOption = None,
        box: BoxOption = None,
        mask: MaskOption = None,
        angles: AnglesOption = None,
        gain: GainOption = None,
        prior: PriorOption = "builtin",
        solver: SolverOption = None,
        batch: BatchOption = 8,
        min_psnr: GateOption = None,
        seed: SeedOption = 0,
        device: DeviceOption = "auto",
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Reconstruct images, from given measurements or from simulated ones.

        Without -o the finding is shown and nothing is written.
        """
        if images is None and measurement is None:
            raise DataError(
                "inverse reconstruct: there is nothing to reconstruct. Give images to measure, or "
                "--measurement FILE."
            )
        if images is None and min_psnr is not None:
            raise DataError("--min-psnr needs the true images to compare with. Give them as IMAGE|FOLDER.")
        if measurement is not None and sigma is None:
            raise DataError(
                "inverse reconstruct: the noise in given measurements is unknown. Add --sigma, its standard "
                "deviation in their units (0 for none)."
            )
        seen = _seen(operator, scale, blur_std, kernel, missing, box, mask, angles, gain)
        _run(
            images,
            operator=seen,
            measurement=measurement,
            sigma=NOISE if sigma is None else sigma,
            fit=fit,
            prior=prior,
            solvers=_solvers(solver or ["auto"]),
            batch=batch,
            seed=seed,
            device=device,
            output=output,
            resume=resume,
            restart=restart,
            min_psnr=min_psnr,
            json=json,
        )

    @group.command("compare")
    def compare(
        images: Annotated[
            Path,
            typer.Argument(
                metavar="IMAGE|FOLDER", help="True images; they are measured.", show_default=False
            ),
        ],
        operator: OperatorOption = Degradation.sr,
        output: OutputOption = None,
        fit: FitOption = None,
        sigma: SigmaOption = None,
        scale: ScaleOption = None,
        blur_std: StdOption = None,
        kernel: KernelOption = None,
        missing: MissingOption = None,
        box: BoxOption = None,
        mask: MaskOption = None,
        angles: AnglesOption = None,
        gain: GainOption = None,
        prior: PriorOption = "builtin",
        solver: SolverOption = None,
        batch: BatchOption = 8,
        seed: SeedOption = 0,
        device: DeviceOption = "auto",
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Run several solvers on the same measurements: what they reach, and what it takes.

        By default what reconstruct takes, and dps. LPIPS is shown where the package lpips is installed and
        images are large enough.
        """
        _run(
            images,
            operator=_seen(operator, scale, blur_std, kernel, missing, box, mask, angles, gain),
            measurement=None,
            sigma=NOISE if sigma is None else sigma,
            fit=fit,
            prior=prior,
            solvers=_solvers(solver or ["auto", "dps"]),
            batch=batch,
            seed=seed,
            device=device,
            output=output,
            resume=resume,
            restart=restart,
            min_psnr=None,
            json=json,
            perceptual=True,
        )


def _run(
    images: Path | None,
    *,
    measurement: Path | None,
    fit: Fit | None,
    output: Path | None,
    min_psnr: float | None,
    json: bool,
    perceptual: bool = False,
    **options: Any,
) -> None:
    """Reconstruct, and show or write what came of it."""
    with manners.phases() as progress:
        progress("read", 0, 1, (images or measurement or Path()).name)
        _quiet()
        from lowdim.inverse import reconstruct
        from lowdim.inverse.accelerate import team

        result = reconstruct(
            images,
            measurement=measurement,
            fit=None if fit is None else fit.value,
            output=output,
            progress=progress,
            **options,
        )
    if not team().leads:  # of several processes one tells
        return
    report = dict(result.report)
    if perceptual:
        from lowdim.inverse.lpips import add_lpips

        report = add_lpips(result)
    report["command"] = manners.typed()
    report.pop("gate", None)  # of an earlier call
    passed = True
    if min_psnr is not None:
        reached = [one["psnr"] for one in report["solvers"] if one["psnr"] is not None]
        passed = bool(reached) and max(reached) >= min_psnr
        report["gate"] = {"min_psnr": min_psnr, "passed": passed}
    if output is not None:
        from lowdim.report import inverse_page
        from lowdim.runs import atomic_json

        report["output"] = str(output)
        atomic_json(output / "report.json", report)
        inverse_page(report, result=result).write(output / "report.html")
    if json:
        manners.emit(report)
    else:
        _show(report, output)
    if not passed:
        raise typer.Exit(manners.GATE_FAILED)


def _quiet() -> None:
    """Keep to themselves what diffusers and torchao, which it loads, say about other packages."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def _seen(
    operator: Degradation,
    scale: int | None,
    blur_std: float | None,
    kernel: Path | None,
    missing: float | None,
    box: float | None,
    mask: Path | None,
    angles: int | None,
    gain: float | None,
) -> dict[str, Any]:
    """Return the operator with the options that were given, which must be its own."""
    values = (scale, blur_std, kernel, missing, box, mask, angles, gain)
    seen: dict[str, Any] = {"name": operator.value}
    for (word, (name, whose)), value in zip(OPTIONS.items(), values, strict=True):
        if value is None:
            continue
        if operator.value not in whose:
            raise DataError(
                f"{word} {value} is an option of {' and '.join(whose)}, and the operator is "
                f"{operator.value}. Leave it out, or choose --operator {whose[0]}."
            )
        seen[name] = str(value) if isinstance(value, Path) else value
    hiding = [word for word in ("--missing", "--box", "--mask") if OPTIONS[word][0] in seen]
    if len(hiding) > 1:
        raise DataError(f"{' and '.join(hiding)} both say what is hidden. Give only one.")
    return seen


def _solvers(words: list[str]) -> dict[str, dict[str, Any]]:
    """Return solvers and their options by a name that a folder may have."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        kind, _, told = word.partition(":")
        options: dict[str, Any] = {}
        for pair in told.split(",") if told else ():
            name, equals, value = pair.partition("=")
            if not (name.strip().isidentifier() and equals and value.strip()):
                raise DataError(f"--solver {word}: expected NAME:OPTION=VALUE,... such as dps:steps=100.")
            options[name.strip()] = _value(value.strip())
        name = "-".join([kind, *(f"{key}={value}" for key, value in options.items())])
        if name in found:
            raise DataError(f"--solver {word} is there twice. Leave one out, or give other options.")
        found[name] = {"solver": kind, **options} if options or kind != "auto" else {}
    return found


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def _show(report: dict[str, Any], output: Path | None) -> None:
    """Print solvers, the finding, and what is to be noted."""
    from rich.markup import escape
    from rich.table import Table

    from lowdim.report.inverse import MEASURES
    from lowdim.report.inverse_figures import named

    out = manners.out
    many = len(report["names"])
    table = Table(
        title=f"Means over {many} images" if many > 1 else escape(report["names"][0]),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    # Nobody needs a column of zeros, or one that is empty.
    shown = [key for key in COLUMNS if any(one.get(key) for one in report["solvers"])]
    table.add_column("Solver", overflow="fold")
    for key in shown:
        table.add_column(COLUMNS[key], justify="right", no_wrap=True)
    for one in report["solvers"]:
        cells = ["" if one.get(key) is None else MEASURES[key][1].format(one[key]) for key in shown]
        table.add_row(escape(named(one["name"])), *cells)
    out.print(table)
    out.print()
    out.print(report["sentence"], highlight=False, markup=False)
    for note in report["notes"]:
        out.print(f"Note: {note}", style="dim", highlight=False, markup=False)
    gate = report.get("gate")
    if gate and not gate["passed"]:
        out.print(f"No solver reaches {gate['min_psnr']:g} dB.", style="red", highlight=False)
    if output is None:
        out.print("\nNothing was written: add -o OUT to keep images and a report.", style="dim")
    else:
        out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True)
