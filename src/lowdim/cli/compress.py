"""``lowdim compress``: a trained network becomes smaller and faster, with a report."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.cli import manners
from lowdim.errors import DataError, LowdimError

if TYPE_CHECKING:
    from rich.table import Table

    from lowdim.compress import Plan

__all__ = ["register"]


class Method(StrEnum):
    """Structures on offer."""

    blast = "blast"
    lowrank = "lowrank"
    svd = "svd"
    monarch = "monarch"
    blockdiag = "blockdiag"


class Allocation(StrEnum):
    """Ways to share the budget out."""

    uniform = "uniform"
    curve = "error-curve"


class Quantize(StrEnum):
    """Integer formats for the factors."""

    int8 = "int8"


class Embeddings(StrEnum):
    """What becomes of the embedding tables."""

    keep = "keep"
    int8 = "int8"
    lowrank = "low-rank"


WIDE = 100
"""Columns from which on a terminal has room for the times of the layers."""

WORK, TEXT, AFTER, RUN = "What is done", "Text or images", "Afterwards", "The run"

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder of a Hugging Face model, or Hub id.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder for model, report.json and report.html.", rich_help_panel=RUN
    ),
]
KeepOption = Annotated[
    float, typer.Option("--keep", help="Fraction of every matrix's parameters to keep.", rich_help_panel=WORK)
]
MethodOption = Annotated[
    Method,
    typer.Option("--method", help="Structure; svd is low rank by the weights alone.", rich_help_panel=WORK),
]
BlocksOption = Annotated[
    str, typer.Option("--blocks", help="auto, a number, or rows,columns.", rich_help_panel=WORK)
]
AllocateOption = Annotated[
    Allocation,
    typer.Option("--allocate", help="Share the budget evenly or by sensitivity.", rich_help_panel=WORK),
]
SequentialOption = Annotated[
    bool,
    typer.Option(
        "--sequential", help="Calibrate each layer on the compressed layers before it.", rich_help_panel=WORK
    ),
]
SweepsOption = Annotated[
    int, typer.Option("--sweeps", help="Sweeps of alternating least squares.", rich_help_panel=WORK)
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", help="Also leave layers alone whose name matches; repeat it.", rich_help_panel=WORK
    ),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target", help="Compress only layers whose name matches; repeat it.", rich_help_panel=WORK
    ),
]
RecoverOption = Annotated[
    int,
    typer.Option("--recover-steps", help="Steps of distillation from the original.", rich_help_panel=WORK),
]
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option("--quantize", help="Integers on top of the factors (torchao).", rich_help_panel=WORK),
]
EmbeddingsOption = Annotated[
    Embeddings,
    typer.Option(
        "--embeddings",
        help="Large embedding tables: as they are, rows in int8 (torchao), or low rank.",
        rich_help_panel=WORK,
    ),
]
CalibOption = Annotated[
    str | None,
    typer.Option(
        "--calib",
        metavar="FILE[:COLUMN]",
        help="Calibration text: txt, jsonl, csv, parquet, or Hub data set; built-in English by default. "
        "For vision models a folder of images.",
        rich_help_panel=TEXT,
    ),
]
TokensOption = Annotated[
    int, typer.Option("--calib-tokens", help="How much of it is used.", rich_help_panel=TEXT)
]
EvalOption = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="FILE[:COLUMN]",
        help="Held-out text (built-in by default) or images (a tenth by default).",
        rich_help_panel=TEXT,
    ),
]
CosineOption = Annotated[
    float | None,
    typer.Option("--min-cosine", help="Exit with 1 below this mean cosine.", rich_help_panel=AFTER),
]
PerplexityOption = Annotated[
    str | None,
    typer.Option(
        "--max-perplexity-increase",
        metavar="FRACTION",
        help="Exit with 1 above this increase, such as 10% or 0.1.",
        rich_help_panel=AFTER,
    ),
]
DenseOption = Annotated[
    bool,
    typer.Option("--dense", help="Also write OUT/dense, which loads without lowdim.", rich_help_panel=AFTER),
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32, bf16, ...; else the model's own.", rich_help_panel=RUN)
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...", rich_help_panel=RUN)]
SeedOption = Annotated[int, typer.Option("--seed", help="For everything random.", rich_help_panel=RUN)]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only print the plan.", rich_help_panel=RUN)]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in OUT.", rich_help_panel=RUN)
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Throw the run in OUT away and begin anew.", rich_help_panel=RUN)
]


def register(app: typer.Typer) -> None:
    """Add ``lowdim compress`` to the application."""

    @app.command(rich_help_panel=manners.SYSTEM_PANEL)
    def compress(
        model: ModelArgument,
        output: OutputOption = None,
        keep: KeepOption = 0.5,
        method: MethodOption = Method.blast,
        blocks: BlocksOption = "auto",
        calib: CalibOption = None,
        calib_tokens: TokensOption = 50_000,
        allocate: AllocateOption = Allocation.uniform,
        sequential: SequentialOption = False,
        sweeps: SweepsOption = 20,
        recover_steps: RecoverOption = 0,
        target: TargetOption = None,
        exclude: ExcludeOption = None,
        quantize: QuantizeOption = None,
        embeddings: EmbeddingsOption = Embeddings.keep,
        evaluation: EvalOption = None,
        min_cosine: CosineOption = None,
        max_perplexity_increase: PerplexityOption = None,
        dense: DenseOption = False,
        dtype: DtypeOption = None,
        device: DeviceOption = "auto",
        seed: SeedOption = 0,
        dry_run: DryOption = False,
        resume: ResumeOption = False,
        restart: RestartOption = False,
        json: manners.JsonOption = False,
    ) -> None:
        """Make a trained network smaller and faster, with a report of what was kept and what was lost.

        Every linear layer becomes a structured one that holds the fraction --keep of its parameters.
        """
        _quiet()
        cut = _blocks(blocks)
        increase = _fraction(max_perplexity_increase)
        settings: dict[str, Any] = {"keep": keep, "method": method.value, "blocks": cut, "targets": target}
        if not target:
            del settings["targets"]
        settings["exclude"] = _excluded(target, exclude)
        settings["embeddings"] = None if embeddings is Embeddings.keep else embeddings.value
        if dry_run:
            found = _plan(model, dtype, settings)
            if json:
                manners.emit(found.to_dict())
            else:
                _show_plan(found)
            return
        if output is None:
            raise DataError("compress: where to? Add -o OUT, or --dry-run to see the plan only.")
        from lowdim.compress import compress as run

        with _progress(quiet=not _first()) as progress:
            result = run(
                model,
                **settings,
                calibration=calib,
                calibration_tokens=calib_tokens,
                evaluation=evaluation,
                allocation=allocate.value,
                sequential=sequential,
                sweeps=sweeps,
                recover_steps=recover_steps,
                quantize=None if quantize is None else "int8",
                seed=seed,
                device=device,
                dtype=dtype,
                output=output,
                resume=resume,
                restart=restart,
                dense=dense,
                min_cosine=min_cosine,
                max_perplexity_increase=increase,
                progress=progress,
            )
        report = {**result.report, "command": _typed(), "output": str(output)}
        if _first():
            _write(report, output)
            if json:
                manners.emit(report)
            else:
                _show(report, output)
        if not all(gate["passed"] for gate in report["gates"]):
            raise typer.Exit(manners.GATE_FAILED)


def _quiet() -> None:
    """Keep the progress bars and notices of other libraries out of ours."""
    import logging

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        from transformers.utils import logging as notices
    except ImportError:
        return  # loading the model will say what to install
    notices.disable_progress_bar()


def _first() -> bool:
    """Whether this process speaks for the job (torchrun starts several)."""
    return os.environ.get("RANK", "0") == "0"


def _blocks(text: str) -> Any:
    if text == "auto":
        return text
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)?", text):
        raise DataError(f"--blocks {text}: expected auto, a number such as 16, or rows,columns such as 16,8.")
    sizes = tuple(map(int, text.split(",")))
    return sizes[0] if len(sizes) == 1 else sizes


def _fraction(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise DataError(
            f"--max-perplexity-increase {text}: expected a fraction such as 10% or 0.1."
        ) from None


def _excluded(target: list[str] | None, exclude: list[str] | None) -> list[str] | None:
    """Add the patterns to the default ones (which named targets switch off)."""
    if not exclude:
        return None
    from lowdim.compress.plan import EXCLUDE

    return exclude if target else [*EXCLUDE, *exclude]


def _typed() -> str:
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--restart", "--debug")]
    return f"lowdim {shlex.join(words)}"


def _plan(model: str, dtype: str | None, settings: dict[str, Any]) -> Plan:
    from lowdim.compress import plan
    from lowdim.compress.loading import load

    return plan(load(model, dtype=dtype, device="cpu").model, **settings)


def _write(report: dict[str, Any], output: Path) -> None:
    """Add how it was called to report.json, and write the page."""
    from lowdim.report import compress_page
    from lowdim.runs import atomic_json

    atomic_json(output / "report.json", report)
    compress_page(report).write(output / "report.html")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int, str], None] | None]:
    """Show one line per phase: how far, seconds left, the layer in work and its error."""
    if quiet:
        yield None
        return
    with manners.progress() as display:
        tasks: dict[str, Any] = {}

        def tell(phase: str, done: int, total: int, text: str) -> None:
            if phase not in tasks:
                tasks[phase] = display.add_task(phase, total=total)
            shown = f"{phase:<9} [not bold dim]{_short(text)}[/]" if text else f"{phase:<9}"
            display.update(tasks[phase], completed=done, total=total, description=shown)

        # The model is loaded, and its weights are hashed, before the library has a plan to tell of.
        tell("plan", 0, 3, "loading the model and hashing its weights")
        try:
            yield tell
        except LowdimError:
            if len(tasks) == 1:  # refused at the door: nothing has begun that a line could tell of
                display.update(tasks["plan"], visible=False)
            raise
        if len(tasks) == 1:  # a finished run was read again
            tell("plan", 3, 3, "")


def _short(text: str, width: int = 60) -> str:
    text = text.replace("[", "(").replace("]", ")")
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _show_plan(found: Plan) -> None:
    from rich.text import Text

    out = manners.out
    table = _layer_table(f"Plan: {len(found.layers)} layers, method {found.method}, keep {found.keep:g}")
    for layer in found.layers:
        table.add_row(*_cells(layer.to_dict()))
    out.print(table)
    if found.tables:
        tables = _table(f"Embedding tables, {found.tables[0].how}")
        tables.add_column("Table", overflow="fold", min_width=24)
        for column in ("Shape", "Rank", "Kept"):
            tables.add_column(column, justify="right", no_wrap=True)
        for entry in found.tables:
            rank = "" if entry.rank is None else str(entry.rank)
            kept = f"{entry.parameters / entry.parameters_before:.0%}"
            tables.add_row(Text(entry.name), "x".join(map(str, entry.shape)), rank, kept)
        out.print()
        out.print(tables)
    if found.left_alone:
        rest = _table("Left alone")
        for column in ("Layer", "Shape", "Why"):
            rest.add_column(column, overflow="fold")
        for stays in found.left_alone:
            rest.add_row(Text(stays.name), "x".join(map(str, stays.shape)), Text(stays.reason))
        out.print()
        out.print(rest)
    out.print(
        f"\nParameters: {found.parameters_before:,} -> {found.parameters_after:,}; in the compressed layers "
        f"{found.compressible_before:,} -> {found.compressible_after:,}.",
        highlight=False,
    )


def _layer_table(title: str, *more: str) -> Table:
    table = _table(title)
    table.add_column("Layer", overflow="fold", min_width=24)
    for column in ("Shape", "Rank", "Blocks", "Kept", *more):
        table.add_column(column, justify="right", no_wrap="\n" not in column)
    return table


def _cells(row: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    blocks = "" if row["blocks"] is None else "x".join(map(str, row["blocks"]))
    rank = "" if row["rank"] is None else str(row["rank"])
    return [Text(row["name"]), "x".join(map(str, row["shape"])), rank, blocks, f"{row['kept']:.0%}"]


def _show(report: dict[str, Any], output: Path) -> None:
    """Print layers, then size, quality and speed, then the gates."""
    from lowdim.compress.record import in_int8
    from lowdim.compress.result import summary_columns, summary_rows

    out = manners.out
    # In a narrow terminal the times would break the names of the layers; report.html has them too.
    known = any(row.get("dense_ms") is not None for row in report["layers"])
    timed = ("dense_ms", "compressed_ms") if known and out.width >= WIDE else ()
    more = ("Weight\nerror", "Output\nerror", *("Dense\nms", "Compressed\nms")[: len(timed)])
    table = _layer_table(f"Layers, method {report['method']}", *more)
    for row in report["layers"]:
        numbers = [row["weight_error"], row["output_error"], *(row.get(key) for key in timed)]
        table.add_row(*_cells(row), *("" if number is None else f"{number:.3f}" for number in numbers))
    out.print(table)
    summary = _table("Summary")
    for column in summary_columns(report):
        summary.add_column(column, justify="left" if not column else "right")
    for cells in summary_rows(report):
        summary.add_row(*cells)
    out.print()
    out.print(summary)
    for name, entry in (report.get("int8") or {}).items():
        if name == "compressed" and in_int8(report):
            continue  # that is the model in the table, with the size of its file
        out.print(f"int8 of the {name}: {entry['bytes'] / 1e6:.1f} MB", highlight=False)
    if "allocations" in report:
        out.print(f"Allocation kept: {report['allocations']['chosen']}", highlight=False)
    for note in report["notes"]:
        out.print(f"Note: {note}", style="dim", highlight=False, markup=False)
    for gate in report["gates"]:
        word, style = ("passed", "green") if gate["passed"] else ("FAILED", "bold red")
        value = "none" if gate["value"] is None else f"{gate['value']:.4g}"
        out.print(f"Gate {gate['name']} {gate['threshold']:g}: {value} {word}", style=style, highlight=False)
    out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True)
