"""compress: plan, calibrate, factorize, recover, evaluate, write; each phase can be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lowdim.compress import inputs as inputs_
from lowdim.compress.calibrate import evaluation_mode
from lowdim.compress.layers import Layer
from lowdim.compress.loading import device_of, dtype_of, load, model_digest
from lowdim.compress.plan import METHODS, Method, plan
from lowdim.compress.ranks import Ranks
from lowdim.compress.record import check_gates, final_quality, gates
from lowdim.compress.result import CompressResult
from lowdim.compress.stages import Job
from lowdim.compress.tables import KINDS, Kind
from lowdim.errors import BudgetError, DataError, RunError
from lowdim.runs import Run

__all__ = ["compress"]

Progress = Callable[[str, int, int, str], None]
"""Called with (phase, done, total, what is going on)."""


@dataclass(frozen=True)
class Options:
    """The arguments that decide the result; they are in the manifest, and a resumed run must repeat them."""

    keep: float
    method: str
    calibration_tokens: int
    targets: str | list[str]
    exclude: list[str] | None
    blocks: Any
    sweeps: int
    allocation: str
    sequential: bool
    recover_steps: int
    quantize: str | None
    embeddings: Kind | None
    dtype: str | None
    dense: bool

    def check(self) -> None:
        """Refuse what cannot be meant, before work is spent."""
        if self.method not in METHODS:
            raise DataError(f"compress: method={self.method!r} is unknown. Use one of {', '.join(METHODS)}.")
        if not 0 < self.keep <= 1:
            raise BudgetError(
                f"compress: keep={self.keep} must be in (0, 1]: the fraction of every matrix's parameters to "
                "keep, for example 0.5."
            )
        if self.allocation not in ("uniform", "error-curve"):
            raise DataError(f"compress: allocation={self.allocation!r}. Use 'uniform' or 'error-curve'.")
        if self.quantize not in (None, "int8"):
            raise DataError(f"compress: quantize={self.quantize!r}. Use 'int8', or leave it out.")
        if self.embeddings is not None and self.embeddings not in KINDS:
            raise DataError(
                f"compress: embeddings={self.embeddings!r}. Use 'int8' or 'low-rank', or leave it out to "
                "keep the tables."
            )
        if self.sweeps < 1:
            raise DataError(f"compress: sweeps={self.sweeps} must be at least 1.")
        if self.recover_steps < 0:
            raise DataError(f"compress: recover_steps={self.recover_steps} must not be negative.")
        if self.method == "svd" and self.sequential:
            raise DataError(
                "compress: method='svd' looks at the weights only, so sequential calibration has no effect. "
                "Use method='lowrank', or leave sequential out."
            )
        dtype_of(self.dtype)


def compress(
    model: str | os.PathLike[str] | nn.Module,
    *,
    keep: float = 0.5,
    method: Method = "blast",
    tokenizer: Any = None,
    calibration: Any = None,
    calibration_tokens: int = 50_000,
    targets: str | Sequence[str] = "all-linear",
    exclude: Sequence[str] | None = None,
    blocks: Any = "auto",
    sweeps: int = 20,
    allocation: Literal["uniform", "error-curve"] = "uniform",
    sequential: bool = False,
    recover_steps: int = 0,
    evaluation: Any = None,
    quantize: Literal["int8"] | None = None,
    embeddings: Literal["int8", "low-rank"] | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: Any = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    restart: bool = False,
    dense: bool = False,
    min_cosine: float | None = None,
    max_perplexity_increase: float | None = None,
    progress: Progress | None = None,
    callback: Callable[[Layer], None] | None = None,
) -> CompressResult:
    """Replace the linear layers of a trained network by structured ones with a fraction of the parameters.

    Parameters
    ----------
    model : path, Hub id, PreTrainedModel or Module
        The trained network; it is not changed.
    keep : float
        Fraction of the parameters of every compressed matrix to keep, in (0, 1].
    method : {"blast", "lowrank", "svd", "monarch", "blockdiag"}
        The structure. "lowrank" is the whitened SVD; "svd" looks at the weights only.
    tokenizer : optional
        Tokenizer or image processor; by default the one in the model's folder.
    calibration : path, data set, list of str, or list of batches, optional
        Text (see `read_text`), a folder of images (of which a tenth is held out where `evaluation` is not
        given) or inputs of the model; by default the built-in English text.
    calibration_tokens : int
        How much of the text, or how many patches of the images, are used.
    targets, exclude : sequence of str
        Patterns of layer names, see `plan`.
    blocks : "auto", int or pair of int
        Block rows and columns.
    sweeps : int
        Sweeps of alternating least squares.
    allocation : {"uniform", "error-curve"}
        "error-curve" shares the budget out by measured sensitivities, and falls back to uniform when the
        held-out quality is not better.
    sequential : bool
        Calibrate every layer on what the compressed layers before it give, towards the original's outputs.
    recover_steps : int
        Updates of distillation from the original.
    evaluation : as `calibration`
        Held-out text, images or inputs; by default built-in text of other pages.
    quantize : "int8", optional
        Weight-only int8 (torchao) on top of the factors; the report sets it beside int8 of the original.
    embeddings : {"int8", "low-rank"}, optional
        Make the embedding tables smaller too, once everything else is done: rows in int8 (torchao), or a
        product of two thin matrices with the fraction `keep` of the numbers. Tables with fewer than 2,500
        rows, or tied to an output layer, stay. By default all do.
    seed : int
        For everything random.
    device : str
        "auto", "cpu", "cuda" (the GPU of this process), "cuda:1", ...
    dtype : str or torch.dtype, optional
        By default that of the checkpoint.
    output : path, optional
        Run directory: every finished piece of work is kept there, and the compressed model is written to it.
    resume, restart : bool
        Go on with the run in `output`, or throw it away.
    dense : bool
        Also write ``output/dense``: the same function with ordinary layers, for programs without lowdim.
    min_cosine, max_perplexity_increase : float, optional
        Quality gates, judged in ``report["gates"]`` (an increase of 0.1 is 10 %).
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    callback : callable, optional
        Called with every finished `Layer`.

    Returns
    -------
    CompressResult

    Raises
    ------
    DataError, BudgetError, ShapeError
        If an option, the model or the data cannot be used.
    MissingExtra
        For int8 without torchao.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    Notes
    -----
    Under ``torchrun`` the layers are shared out over the processes (all of them must see `output`); the
    weights are the same as those of a single process.

    References
    ----------
    Lee, Kwon, Qu, Kim, "BLAST", NeurIPS 2024, arXiv 2410.21262. There the weights are approximated without
    looking at activations; the second moments of the inputs and the least-squares sweeps are ours.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from lowdim.compress import compress
    >>> net = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 96))
    >>> result = compress(net, keep=0.5, calibration=[torch.randn(512, 96)], sweeps=5)
    >>> bool(result.report["quality"]["relative_error"] < 1)
    True
    """
    options = Options(
        keep=keep,
        method=method,
        calibration_tokens=calibration_tokens,
        targets=targets if isinstance(targets, str) else list(targets),
        exclude=None if exclude is None else list(exclude),
        blocks=list(blocks) if isinstance(blocks, tuple) else blocks,
        sweeps=sweeps,
        allocation=allocation,
        sequential=sequential,
        recover_steps=recover_steps,
        quantize=quantize,
        embeddings=embeddings,
        dtype=None if dtype is None else str(dtype_of(dtype)).removeprefix("torch."),
        dense=dense,
    )
    options.check()
    device_of(device)
    if output is not None:
        _keep_apart(model, Path(output))
    # Generators of batches would be empty at the second reading.
    calibration = _listed(calibration)
    evaluation = _listed(evaluation)
    with Ranks.here() as ranks, ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(evaluation_mode(model))
        run = _open(stack, ranks, options, model, calibration, evaluation, output, seed, resume, restart)
        if run is not None and run.finished:
            return _finished(run, model, min_cosine, max_perplexity_increase)
        with ranks.together():
            if "int8" in (quantize, embeddings):
                from lowdim.compress.torchao import require

                require()
            source = load(model, tokenizer=tokenizer, dtype=dtype, device=device)
            if run is not None and ranks.first:
                run.pin("model", model_digest(source.model))
            job = Job(source, options, run, ranks, seed, progress, callback)
            check_gates(job.task, type(source.model).__name__, min_cosine, max_perplexity_increase)
            with job.phase("plan"):
                job.inputs = inputs_.prepare(
                    source,
                    job.task,
                    calibration=calibration,
                    calibration_tokens=calibration_tokens,
                    evaluation=evaluation,
                    needed=method != "svd" or recover_steps > 0 or allocation != "uniform",
                    seed=seed,
                )
                job.plan = plan(
                    source.model,
                    keep=keep,
                    method=method,
                    blocks=blocks,
                    targets=targets,
                    exclude=exclude,
                    embeddings=embeddings,
                )
                job.drop_unreached()
        job.factorize()
        with ranks.together():
            if ranks.first:
                job.choose()
                job.recover()
                job.shrink_tables()
                job.evaluate()
                result = job.write(min_cosine, max_perplexity_increase)
        if not ranks.first:
            return _finished(run, model, min_cosine, max_perplexity_increase)  # type: ignore[arg-type]
        return result


def _open(
    stack: ExitStack,
    ranks: Ranks,
    options: Options,
    model: Any,
    calibration: Any,
    evaluation: Any,
    output: Any,
    seed: int,
    resume: bool,
    restart: bool,
) -> Run | None:
    """Open the run directory in the first process; the others join."""
    if output is None:
        if resume or restart:
            raise RunError("compress: resume and restart need the output folder of the run. Add output=...")
        if ranks.world > 1:
            raise RunError(
                f"compress: {ranks.world} processes exchange their layers through the output folder. Add "
                "output=..."
            )
        return None
    run: Run | None = None
    with ranks.together():
        if ranks.first:
            digests = {
                "calibration": inputs_.source_digest(calibration),
                "evaluation": inputs_.source_digest(evaluation),
            }
            name = type(model).__name__ if isinstance(model, nn.Module) else os.fspath(model)
            run = stack.enter_context(
                Run.open(
                    output,
                    command="compress",
                    arguments={"model": name, **asdict(options)},
                    seed=seed,
                    inputs={key: value for key, value in digests.items() if value is not None},
                    resume=resume,
                    restart=restart,
                )
            )
    return run if run is not None else Run.join(output)


def _finished(
    run: Run, model: Any, min_cosine: float | None, max_perplexity_increase: float | None
) -> CompressResult:
    """Return the result that lies in a finished run directory."""
    import copy

    fresh = None
    if isinstance(model, nn.Module) and not (run.path / "config.json").exists():
        fresh = copy.deepcopy(model)
    result = CompressResult.load(run.path, model=fresh)
    task = result.report["task"]
    check_gates(task, result.report["architecture"], min_cosine, max_perplexity_increase)
    result.report["gates"] = gates(final_quality(result.report), min_cosine, max_perplexity_increase)
    return result


def _keep_apart(model: Any, output: Path) -> None:
    """Refuse to write over the original."""
    if isinstance(model, nn.Module) or not Path(model).is_dir():
        return
    if Path(model).resolve() == output.resolve():
        raise RunError(
            f"The output folder {output} is the folder of the original model. Choose another one with -o; "
            "the original is never changed."
        )


def _listed(given: Any) -> Any:
    """Turn a generator of batches into a list; leave text, paths and lists as they are."""
    return list(given) if hasattr(given, "__next__") else given
