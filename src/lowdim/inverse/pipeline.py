"""Pipeline: `reconstruct`, from image files or measurements to reconstructions and a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.inverse.accelerate import team
from lowdim.inverse.choose import chosen_prior, chosen_solvers
from lowdim.inverse.folder import InverseResult
from lowdim.inverse.job import Item, Job, Progress, image_shape_of
from lowdim.inverse.pictures import Picture, read_pictures
from lowdim.inverse.priors import Prior
from lowdim.inverse.sizes import Fit, fitted
from lowdim.runs import Run

__all__ = ["Progress", "reconstruct"]


def reconstruct(
    source: Any = None,
    *,
    operator: Any,
    sigma: float | None = None,
    prior: Any = "builtin",
    solvers: Any = "auto",
    measurement: Any = None,
    output: str | os.PathLike[str] | None = None,
    fit: Fit | None = None,
    device: str | torch.device | None = None,
    batch: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    resume: bool = False,
    restart: bool = False,
) -> InverseResult:
    """Reconstruct images from measurements, one or many, by one solver or several.

    Parameters
    ----------
    source : path, Tensor or ndarray, optional
        True images, see `read_pictures`: they are measured, and reconstructions compared with them. With
        `measurement` they are only compared with; leave them out where the truth is not known.
    operator : str, mapping, object with A(x), or function
        A name of `OPERATORS`, a mapping of its name and options such as ``{"name": "sr", "factor": 4}``, or
        anything that `as_operator` takes.
    sigma : float, optional
        Standard deviation of the noise in measurements, in their units; named operators measure images in [0,
        1]. Needed unless the operator knows it.
    prior : Prior, path, or {"builtin", "builtin-latent"}
        See `chosen_prior`.
    solvers : str, sequence of str, or mapping
        See `chosen_solvers`.
    measurement : path, Tensor or ndarray, optional
        Given measurements (B, ...), or an NPY file of them, or of one (...); or, of operators whose
        measurements are images, image files as of `read_pictures`.
    output : path, optional
        Run directory: every image is kept there as soon as it is done, and the result is written to it.
    fit : {"resize", "crop"}, optional
        What to do with true images of another size than the prior's, see `fitted`.
    device : str or torch.device, optional
        Where the prior works; "auto" takes a GPU if there is one. By default where the prior is.
    batch : int
        Images at once.
    seed : int
        Of image i it is seed + i, so that its result depends neither on its batch nor on the number of
        processes.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    resume, restart : bool
        Go on with the run in `output`, or throw it away.

    Returns
    -------
    InverseResult

    Raises
    ------
    DataError, ShapeError
        If a file, its numbers or an option cannot be used.
    RunError
        If the output folder is in use, holds another run, or cannot be written.

    Notes
    -----
    Started by ``accelerate launch`` or ``torchrun``, the processes share the images between them; they need
    an `output` folder that all of them see.

    Examples
    --------
    >>> from lowdim.inverse import GMMPrior
    >>> x = torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> prior = GMMPrior.fit(2 * x - 1, components=2)
    >>> result = reconstruct(x[:3], operator="denoise", sigma=0.1, prior=prior, solvers=["dcdp", "dps"])
    >>> len(result.images["dps"]), result.report["solvers"][0]["name"], len(result.table())
    (3, 'dcdp', 6)
    """
    if output is None and (resume or restart):
        raise RunError("inverse: resume and restart need the output folder of the run. Add output=...")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise DataError(f"inverse: batch={batch!r} must be a whole number of 1 or more.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"inverse: seed={seed!r} must be a whole number of 0 or more.")
    known = _on(chosen_prior(prior), device)
    job = Job(
        items=_items(source, measurement, known, fit),
        operator=operator,
        sigma=sigma,
        prior=known,
        solvers=chosen_solvers(solvers, known),
        batch=batch,
        seed=seed,
        progress=progress,
        team=team(),
        labels=_labels(source, measurement, prior),
    )
    job.check()
    if job.team.size > 1 and output is None:
        raise RunError(
            "inverse: several processes need an output folder that all of them see. Add output=..."
        )
    if output is None:
        return job.solve()
    return _in_folder(job, output, resume=resume, restart=restart)


def _in_folder(job: Job, output: Any, *, resume: bool, restart: bool) -> InverseResult:
    """Run a job in its folder; the first process opens and ends the run, the others join it."""
    with ExitStack() as stack:
        error: BaseException | None = None
        if job.team.leads:
            try:
                job.run = stack.enter_context(
                    Run.open(
                        output,
                        command="inverse reconstruct",
                        arguments=job.arguments(),
                        seed=job.seed,
                        inputs=job.inputs(),
                        resume=resume,
                        restart=restart,
                    )
                )
            except Exception as failure:
                error = failure
        job.team.agree(error)
        if not job.team.leads:
            job.run = Run.join(output)
        if job.run is not None and job.run.finished:
            result = InverseResult.load(output)
        else:
            error = None
            try:
                job.share()
            except Exception as failure:
                error = failure
            job.team.agree(error)
            if job.team.leads:
                result = job.result()
                job.tell("write", 0, 1, "")
                result.save(output)
                job.tell("write", 1, 1, "")
            job.team.wait()
    if not job.team.leads:
        result = InverseResult.load(output)
    return result


def _on(prior: Prior, device: str | torch.device | None) -> Prior:
    if device is None:
        return prior
    if device == "auto":
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % cards}" if cards else "cpu"
    try:
        return prior.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(
            f"inverse: device={str(device)!r} cannot be used ({str(error).splitlines()[0]}). Use 'cpu', or "
            "what `lowdim doctor` shows."
        ) from error


def _items(source: Any, measurement: Any, prior: Prior, fit: Fit | None) -> list[Item]:
    shape = image_shape_of(prior)
    channels = None if shape is None else shape[0]
    pictures = [] if source is None else read_pictures(source, channels=channels)
    pictures = fitted(pictures, shape, fit=fit)
    if measurement is None:
        return [Item(p.name, p.image, None) for p in pictures]
    if isinstance(measurement, (str, os.PathLike)) and Path(measurement).suffix.lower() != ".npy":
        seen = read_pictures(measurement, channels=channels)
        y: Sequence[Tensor] = [p.image for p in seen]
        pictures = pictures or [Picture(p.name, torch.zeros(0)) for p in seen]
    else:
        y = _measurements(measurement, len(pictures) or None)
    if not pictures:
        pictures = [Picture(f"image-{i:05d}", torch.zeros(0)) for i in range(len(y))]
    if len(y) != len(pictures):
        raise ShapeError(f"measurement: {len(y)} for {len(pictures)} images. Give one per image.")
    return [
        Item(p.name, p.image if p.image.numel() else None, one) for p, one in zip(pictures, y, strict=True)
    ]


def _measurements(measurement: Any, many: int | None) -> Sequence[Tensor]:
    import numpy as np

    if isinstance(measurement, (str, os.PathLike)):
        path = Path(measurement)
        try:
            measurement = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"measurement: {path} cannot be read as NPY ({error}). Write it by numpy.save."
            ) from error
    y = torch.as_tensor(measurement)
    if not y.is_floating_point() and not y.is_complex():
        y = y.float()
    y = y.to(torch.complex64 if y.is_complex() else torch.float32)
    if y.ndim == 0:
        raise ShapeError("measurement: one number is no measurement. Expected (batch, ...).")
    if many == 1 and len(y) != 1:
        y = y[None]  # one measurement without a batch axis
    return list(y)


def _labels(source: Any, measurement: Any, prior: Any) -> dict[str, Any]:
    def called(thing: Any) -> str | None:
        if thing is None:
            return None
        return Path(thing).name if isinstance(thing, (str, os.PathLike)) else type(thing).__name__

    return {"source": called(source), "measurement": called(measurement), "prior": called(prior)}
