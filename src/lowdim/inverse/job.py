"""Job: the images of one run, which solver has done which, and what came of it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, LowdimWarning, ShapeError
from lowdim.inverse.accelerate import Team
from lowdim.inverse.folder import FORMAT, InverseResult
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.metrics import psnr, ssim
from lowdim.inverse.named import named_operator
from lowdim.inverse.operators import ForwardOperator, as_operator
from lowdim.inverse.priors import Prior
from lowdim.inverse.result import Reconstruction
from lowdim.runs import Run, atomic_tensors, digest, file_digest, plain, read_tensors, versions

__all__ = ["Item", "Job", "Progress", "image_shape_of"]

Progress = Callable[[str, int, int, str], None]

_SOLVING = 2**32
"""Between the seeds of the noise in measurements and those of solvers."""


def image_shape_of(prior: Prior) -> tuple[int, ...] | None:
    """Return (C, H, W) of a prior's images, where only one is possible; of latent ones, of the decoder's."""
    return prior.image_shape if isinstance(prior, LatentPrior) else prior.shape


@dataclass(frozen=True, eq=False)
class Item:
    """One image: its truth, its measurement, or both."""

    name: str
    truth: Tensor | None
    y: Tensor | None


@dataclass
class Job:
    """One call of `reconstruct` at work.

    Parameters
    ----------
    items : list of Item
    operator, sigma, prior, solvers, batch, seed, progress
        As of `reconstruct`, prior and solvers made.
    team : Team
    labels : dict
        What was asked for, as people call it.
    run : Run or None
    """

    items: list[Item]
    operator: Any
    sigma: float | None
    prior: Prior
    solvers: dict[str, Any]
    batch: int
    seed: int
    progress: Progress | None
    team: Team
    labels: dict[str, Any]
    run: Run | None = None
    _operators: dict[tuple[int, ...], ForwardOperator] = field(init=False, default_factory=dict)
    _done: dict[tuple[str, int], tuple[dict[str, Tensor], dict[str, Any]]] = field(
        init=False, default_factory=dict
    )

    def check(self) -> None:
        """Measure every image once, so that what does not fit is refused before work is spent."""
        if not self.items:
            raise DataError("inverse: there is no image. Give source or measurement.")
        for index in {self.shape(i): i for i in range(len(self.items))}.values():
            y, shape = self.measured(index), self.shape(index)
            if shape is not None and self.items[index].y is not None:
                self._check_measured(self.items[index].name, y, shape, index)
        if self.sigma is None and self.forward(0).noise_sigma is None:
            raise DataError(
                "inverse: the noise in the measurements is unknown. Give sigma=, its standard deviation in "
                "their units (0 for none)."
            )
        if self.sigma is not None and not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise DataError(
                f"inverse: sigma={self.sigma} must be a number >= 0, in the units of measurements."
            )

    def _check_measured(self, name: str, y: Tensor, shape: tuple[int, ...], index: int) -> None:
        with torch.no_grad():
            made = self.forward(index).A(torch.zeros(1, *shape))
        if made.shape != y.shape:
            raise ShapeError(
                f"measurement: that of {name} is {tuple(y.shape[1:])}, but the operator makes "
                f"{tuple(made.shape[1:])} of images {shape}. Check the operator's options and the size that "
                "the prior knows."
            )

    def tell(self, phase: str, done: int, total: int, text: str) -> None:
        """Report progress, of the first process."""
        if self.progress is not None and self.team.leads:
            self.progress(phase, done, total, text)

    # What is to be done

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Return (C, H, W) of an image, where it is known before it is there."""
        truth = self.items[index].truth
        if truth is not None:
            return tuple(truth.shape)
        known = (
            getattr(self.prior, "image_shape", None) if hasattr(self.prior, "decode") else self.prior.shape
        )
        return known or getattr(self.operator, "image_shape", None)

    def forward(self, index: int) -> ForwardOperator:
        """Return the operator of an image."""
        shape = self.shape(index)
        key = shape or ()
        if key not in self._operators:
            options: dict[str, Any] | None = None
            if isinstance(self.operator, str):
                options = {"name": self.operator}
            elif isinstance(self.operator, Mapping):
                options = dict(self.operator)
            if options is None:
                self._operators[key] = as_operator(self.operator)
            elif shape is None:
                raise ShapeError(
                    "inverse: the size of images is unknown. Give true images, or a prior of one size."
                )
            else:
                name = options.pop("name", None)
                self._operators[key] = named_operator(
                    str(name), image_shape=shape, **{"seed": self.seed, **options}
                )
        return self._operators[key]

    def measured(self, index: int) -> Tensor:
        """Return the measurement of an image, shape (1, ...): the given one, or a simulated one."""
        item, operator = self.items[index], self.forward(index)
        if item.y is not None:
            return item.y[None]
        if item.truth is None:
            raise DataError(f"inverse: {item.name} has neither an image nor a measurement.")
        with torch.no_grad():
            return operator.measure(item.truth[None], sigma=self.sigma, seed=[self.seed + index])

    def chunks(self) -> Iterator[list[int]]:
        """Yield the images that go through the solvers together: neighbors of one size."""
        chunk: list[int] = []
        for index in range(len(self.items)):
            if chunk and (len(chunk) == self.batch or self._kind(index) != self._kind(chunk[0])):
                yield chunk
                chunk = []
            chunk.append(index)
        yield chunk

    def _kind(self, index: int) -> Any:
        item = self.items[index]
        return self.shape(index), None if item.y is None else item.y.shape

    # Doing it

    def solve(self) -> InverseResult:
        """Reconstruct all images in this process."""
        self.share()
        return self.result()

    def share(self) -> None:
        """Reconstruct the images of this process's share that are not yet done."""
        chunks = [(name, chunk) for name in self.solvers for chunk in self.chunks()]
        total = len(self.solvers) * len(self.items)
        done = 0
        for number, (name, chunk) in enumerate(chunks):
            if number % self.team.size == self.team.rank:
                left = [i for i in chunk if not self._kept(name, i)]
                if left:
                    self._reconstruct(name, left, done, total)
            done += len(chunk)
            self.tell("reconstruct", done, total, name)

    def _reconstruct(self, name: str, chunk: list[int], done: int, total: int) -> None:
        y = torch.cat([self.measured(i) for i in chunk])
        operator = self.forward(chunk[0])

        def tell(step: int, steps: int) -> None:
            self.tell(
                "reconstruct", done, total, f"{name}: {self.items[chunk[0]].name}, step {step} of {steps}"
            )

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", LowdimWarning)
            found: Reconstruction = self.solvers[name](
                y,
                operator,
                sigma=self.sigma,
                seed=[self.seed + _SOLVING + i for i in chunk],
                callback=_Steps(tell),
            )
        told = [str(entry.message) for entry in caught if issubclass(entry.category, LowdimWarning)]
        for position, index in enumerate(chunk):
            self._keep(name, index, *self._one(name, found, position, index, len(chunk), told))

    def _one(
        self, name: str, found: Reconstruction, position: int, index: int, many: int, told: list[str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and the row of the table of one image."""
        image = found.image[position].detach().cpu()
        item, span = self.items[index], self.forward(index).value_range
        row: dict[str, Any] = {"image": item.name, "solver": name, "psnr": None, "ssim": None}
        if item.truth is not None and item.truth.shape == image.shape:
            row["psnr"] = float(psnr(image[None], item.truth[None], value_range=span))
            row["ssim"] = float(ssim(image[None], item.truth[None], value_range=span))
        row |= {
            "residual": float(found.residual[position]),
            "network_calls": found.network_calls,
            "decoder_calls": found.decoder_calls,
            "iterations": int(found.iterations[position]),
            "seconds": found.seconds / many,
        }
        curve = found.curve[:, position] if found.curve.numel() else torch.zeros(0)
        facts = {"row": row, "curve": curve.tolist(), "notes": told}
        return {"image": image}, plain(facts)

    def _path(self, run: Run, name: str, index: int) -> Path:
        return run.work / f"{name}-{index:06d}.safetensors"

    def _kept(self, name: str, index: int) -> bool:
        """Whether an image is done, by a run before."""
        return self.run is not None and self._path(self.run, name, index).is_file()

    def _keep(self, name: str, index: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        if self.run is None:
            self._done[name, index] = tensors, facts
        else:
            atomic_tensors(
                self._path(self.run, name, index), tensors, {"facts": json.dumps(facts, allow_nan=False)}
            )

    def _read(self, name: str, index: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.run is None:
            return self._done[name, index]
        tensors, told = read_tensors(self._path(self.run, name, index))
        return tensors, json.loads(told["facts"])

    # What came of it

    def result(self) -> InverseResult:
        """Return all images and the report."""
        images: dict[str, tuple[Tensor, ...]] = {}
        rows, curves = [], {}
        notes: list[str] = []
        for name in self.solvers:
            found = [self._read(name, index) for index in range(len(self.items))]
            images[name] = tuple(tensors["image"] for tensors, _ in found)
            rows += [facts["row"] for _, facts in found]
            curves[name] = [facts["curve"] for _, facts in found]
            notes += [note for _, facts in found for note in facts["notes"]]
        truth = tuple(item.truth for item in self.items if item.truth is not None)
        measurements = tuple(self.measured(i)[0].cpu() for i in range(len(self.items)))
        solvers = [
            self._solver_record(name, [row for row in rows if row["solver"] == name]) for name in self.solvers
        ]
        report = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **self.labels,
            "operator": self._operator_label(),
            "sigma": self.forward(0).noise_sigma if self.sigma is None else self.sigma,
            "value_range": list(self.forward(0).value_range),
            "simulated": self.items[0].y is None,
            "names": [item.name for item in self.items],
            "shapes": [list(image.shape) for image in images[next(iter(images))]],
            "solvers": solvers,
            "rows": rows,
            "curves": curves,
            "sentence": _sentence(solvers, len(self.items)),
            "seed": self.seed,
            "notes": list(dict.fromkeys(notes)),
            "versions": versions("diffusers", "deepinv"),
        }
        return InverseResult(
            images, measurements, truth if len(truth) == len(self.items) else None, plain(report)
        )

    def _solver_record(self, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        def mean(key: str) -> float | None:
            values = [row[key] for row in rows if row[key] is not None]
            return sum(values) / len(values) if values else None

        keys = ("psnr", "ssim", "residual", "network_calls", "decoder_calls", "iterations", "seconds")
        settings = getattr(self.solvers[name], "settings", {})
        return {"name": name, **{key: mean(key) for key in keys}, "settings": settings}

    def _operator_label(self) -> dict[str, Any]:
        if isinstance(self.operator, str):
            return {"name": self.operator}
        if isinstance(self.operator, Mapping):
            return dict(self.operator)
        return {"name": type(self.operator).__name__}

    def arguments(self) -> dict[str, Any]:
        """Return the options that decide the result, JSON-ready."""
        solvers = {name: getattr(solver, "settings", {}) for name, solver in self.solvers.items()}
        told = {**self.labels, "operator": self._operator_label(), "sigma": self.sigma, "solvers": solvers}
        return plain(told)

    def inputs(self) -> dict[str, str]:
        """Return digests of what was given."""
        found = {}
        for key in ("truth", "y"):
            tensors = [t for item in self.items if (t := getattr(item, key)) is not None]
            if tensors:
                found["images" if key == "truth" else "measurements"] = digest(*tensors)
        options = self.operator if isinstance(self.operator, Mapping) else {}
        for key in ("mask", "kernel"):  # files that an operator is made of
            if options.get(key) is not None:
                found[key] = file_digest(options[key])
        return found


class _Steps:
    """A callback that counts steps; latent solvers need not decode anything for it."""

    images = False

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell

    def __call__(self, step: int, steps: int, images: Tensor) -> None:
        self._tell(step, steps)


def _sentence(solvers: list[dict[str, Any]], many: int) -> str:
    count = f"{many} images were" if many > 1 else "One image was"
    known = [entry for entry in solvers if entry["psnr"] is not None]
    if not known:
        told = ", ".join(f"{e['name']} to {e['residual']:.2f} sigma^2" for e in solvers)
        return f"{count} reconstructed; the measurements are met by {told}."
    best = max(known, key=lambda entry: entry["psnr"])
    return (
        f"{count} reconstructed; {best['name']} comes nearest to the truth, at {best['psnr']:.1f} dB with "
        f"{best['network_calls']:.0f} network calls per image."
    )
