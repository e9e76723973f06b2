"""What a Monitor measures: one small class per probe, under one protocol.

A probe sees the training after every optimizer step (`watch`, which has to be cheap) and measures at a
report (`measure`). What it returns are Python floats by name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import isfinite, isnan, nan
from typing import Any, Protocol

import torch
from torch import Tensor

from lowdim.dynamics.balance import Chain, balancing_gap
from lowdim.dynamics.drift import drift_between
from lowdim.dynamics.oscillation import WINDOW, EdgeDetector, alternation, oscillation_rank, period
from lowdim.dynamics.shards import gathered, is_sharded
from lowdim.dynamics.sketch import ParameterSketch
from lowdim.dynamics.spectra import LIMIT, Spectrum, as_matrix, spectrum
from lowdim.dynamics.training import Training

__all__ = [
    "BalanceProbe",
    "DriftProbe",
    "OscillationProbe",
    "Probe",
    "RankProbe",
    "SharpnessProbe",
]

FRESH = 128
"""Steps after which pending sketches are looked at, even if there is no report."""

KEPT = 1 << 16
"""Alternation scores that are kept."""


class Probe(Protocol):
    """One thing that is measured.

    Attributes
    ----------
    name : str
        As in ``Monitor(probes=...)``.
    """

    name: str

    def watch(self, training: Training) -> None:
        """Look at the training after a step; cheap."""

    def measure(self, training: Training) -> dict[str, float]:
        """Return what is to be reported."""


class SharpnessProbe:
    """The largest curvature, and what the optimizer can bear: a few Hessian products.

    Parameters
    ----------
    tracker : SharpnessTracker
        It is warm: each look begins with the last one.
    """

    name = "sharpness"

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker

    def watch(self, training: Training) -> None:
        """Nothing between reports."""

    def measure(self, training: Training) -> dict[str, float]:
        """Look once; all processes take part."""
        look = self.tracker.measure()
        if not isfinite(look.value):
            training.warn(
                "sharpness is not finite",
                f"the sharpness at step {training.step} is not a number, and perhaps later ones: a product "
                f"with the Hessian was not finite. The training has diverged, or the probe batch overflows.",
            )
        found = {
            "dyn/sharpness": look.value,
            "dyn/sharpness_residual": look.residual,
            "dyn/lowest_curvature": look.lowest,
            "dyn/hvps": look.products,
        }
        if look.threshold is not None:
            found |= {"dyn/threshold": look.threshold, "dyn/sharpness_ratio": look.ratio}
        if look.raw is not None:
            found["dyn/sharpness_raw"] = look.raw
        return found


class OscillationProbe:
    """Alternation, period and rank of the oscillation, from one pass over the parameters per step.

    Sketches of the states wait until somebody asks, so that a GPU is not waited for and shards are summed
    many at a time.

    Parameters
    ----------
    sketch : ParameterSketch
        Takes the states.
    average : int
        See :func:`lowdim.dynamics.alternation`.
    detector : EdgeDetector
        Sees the score of order 2 of every step.
    """

    name = "oscillation"

    def __init__(self, sketch: ParameterSketch, *, average: int = 1, detector: EdgeDetector) -> None:
        self.sketch = sketch
        self.average = average
        self.detector = detector
        self.scores: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self.crossed_at: int | None = None
        self._states = torch.zeros(0, sketch.width, dtype=torch.float64)
        self._fresh: list[Tensor] = []
        self._step: int | None = None
        self._reported = 0
        self._seen = 0
        self._edge = False

    def watch(self, training: Training) -> None:
        """Sketch the state after a step."""
        if self._step is not None and training.step != self._step + 1:
            # Not the next state: a checkpoint was read, or steps are left out.
            self.settle(training)
            self._states = self._states[:0]
        self._fresh.append(self.sketch())
        self._step = training.step
        if len(self._fresh) >= FRESH:
            self.settle(training)

    def turn_to(self, sketch: ParameterSketch, training: Training) -> None:
        """Go on with another sketch, of other parameters: its states have nothing to do with the last."""
        self.settle(training)
        self.sketch = sketch
        self._states = self._states[:0]

    def settle(self, training: Training) -> None:
        """Look at the sketches that wait; all processes take part if parameters are sharded."""
        if not self._fresh or self._step is None:
            return
        fresh = training.layout.total(torch.stack(self._fresh)).double().cpu()
        self._fresh = []
        states = torch.cat([self._states, fresh])
        still = self.sketch.still
        if len(states) >= self.average + 2:
            new = alternation(states, average=self.average, still=still)[-len(fresh) :].tolist()
            for step, score in zip(range(self._step - len(new) + 1, self._step + 1), new, strict=True):
                self.scores.append((step, score))
                self._seen += 1
        if len(states) >= 4:
            new = alternation(states, order=2, still=still)[-len(fresh) :].tolist()
            sizes = states.diff(n=2, dim=0).norm(dim=1)
            weights = (sizes[1:] * sizes[:-1])[-len(new) :].tolist()
            steps = range(self._step - len(new) + 1, self._step + 1)
            for step, score, weight in zip(steps, new, weights, strict=True):
                rings = self.detector.update(score, weight=weight)
                self._edge |= rings
                if rings and self.crossed_at is None:
                    self.crossed_at = step
        self._states = states[-max(WINDOW, self.average + 1) :]

    def measure(self, training: Training) -> dict[str, float]:
        """Return the mean alternation since the last report, and what the last states tell."""
        self.settle(training)
        new = min(self._seen - self._reported, len(self.scores))
        self._reported = self._seen
        scores = [score for _, score in list(self.scores)[len(self.scores) - new :] if not isnan(score)]
        found = {
            "dyn/alternation": sum(scores) / len(scores) if scores else nan,
            "dyn/edge": float(self._edge),
        }
        self._edge = False
        states = self._states[-WINDOW:]
        if len(states) == WINDOW:
            still = self.sketch.still
            last = alternation(states, still=still).nanmean()
            found["dyn/period"] = float(period(states, still=still))
            # What goes straight on does not oscillate, whatever directions it bends in.
            found["dyn/osc_rank"] = float(oscillation_rank(states, still=still)) if float(last) > 0 else 0.0
        return found


class RankProbe:
    """Effective and stable rank of every matrix: of the weights, their gradients, their last updates.

    Parameters
    ----------
    of : sequence of {"weight", "gradient", "update"}
        What is looked at. An update needs a copy of the weights one step before a report.
    vectors : int
        Singular vectors that another probe wants of the weights; computed along.
    limit : int
        Smaller dimension up to which effective ranks are computed.
    """

    name = "rank"
    _SUFFIX = {"weight": "", "gradient": "_grad", "update": "_update"}  # noqa: RUF012

    def __init__(self, *, of: Sequence[str] = ("weight",), vectors: int = 0, limit: int = LIMIT) -> None:
        self.of = tuple(of)
        self.vectors = vectors
        self.limit = limit
        self._before: tuple[int, dict[str, Tensor]] | None = None

    @torch.no_grad()
    def watch(self, training: Training) -> None:
        """Keep the weights of one step before a report, if updates are looked at."""
        if "update" in self.of and (training.step + 1) % training.every == 0:
            pairs = zip(training.names, training.parameters.tensors, strict=True)
            copies = {name: tensor.detach().clone() for name, tensor in pairs if tensor.ndim > 1}
            self._before = (training.step, copies)

    @torch.no_grad()
    def measure(self, training: Training) -> dict[str, float]:
        """Return the ranks."""
        found: dict[str, float] = {}
        for name, _, matrix in training.matrices() if "weight" in self.of else ():
            found |= self._ranks(name, matrix, "weight", training)
        if "gradient" in self.of:
            for name, tensor in zip(training.names, training.parameters.tensors, strict=True):
                if as_matrix(tensor.detach()) is not None:
                    found |= self._of_gradient(name, tensor, training)
        if "update" in self.of:
            found |= self._of_updates(training)
        return found

    def _of_gradient(self, name: str, tensor: Tensor, training: Training) -> dict[str, float]:
        if tensor.grad is None:
            training.warn(
                "rank of gradients",
                "there are no gradients after the step. Call zero_grad() before backward() instead.",
            )
            return {}
        matrix = as_matrix(gathered(tensor.grad))
        # An overflow that a GradScaler has skipped.
        if matrix is None or not training.writes or not bool(torch.isfinite(matrix).all()):
            return {}
        return self._ranks(name, matrix, "gradient", training)

    def _of_updates(self, training: Training) -> dict[str, float]:
        if self._before is None or self._before[0] != training.step - 1:
            return {}
        found: dict[str, float] = {}
        for name, tensor in zip(training.names, training.parameters.tensors, strict=True):
            if name not in self._before[1]:
                continue
            matrix = as_matrix(gathered(tensor.detach() - self._before[1][name]))
            if matrix is not None and training.writes:
                found |= self._ranks(name, matrix, "update", training)
        self._before = None
        return found

    def _ranks(self, name: str, matrix: Tensor, what: str, training: Training) -> dict[str, float]:
        vectors = min(self.vectors, *matrix.shape) if what == "weight" else 0
        look = spectrum(matrix, count=max(1, vectors), vectors=vectors > 0, limit=self.limit)
        if what == "weight":
            training.spectra[name] = look
        suffix = self._SUFFIX[what]
        found = {f"dyn/srank{suffix}/{name}": look.stable_rank}
        if look.complete:
            found[f"dyn/erank{suffix}/{name}"] = look.effective_rank
        else:
            training.warn(
                "rank of large matrices",
                f"the effective rank of {name}, of shape {tuple(matrix.shape)}, and of others as large takes "
                f"too long and is left out. Raise rank_limit={self.limit} to have it.",
            )
        return found


class DriftProbe:
    """How far the leading singular subspaces of every weight have turned since it was first looked at.

    Parameters
    ----------
    rank : int
        Singular directions that are followed.
    limit : int
        Smaller dimension from which on they are followed by block Lanczos.
    """

    name = "drift"

    def __init__(self, *, rank: int = 4, limit: int = LIMIT) -> None:
        self.rank = rank
        self.limit = limit
        self._reference: dict[str, Spectrum] | None = None
        self._last: dict[str, Tensor] = {}

    def watch(self, training: Training) -> None:
        """Keep the subspaces of the first step."""
        if self._reference is None:
            self._reference = {name: self._look(name, matrix) for name, _, matrix in training.matrices()}

    def measure(self, training: Training) -> dict[str, float]:
        """Return the largest angles in degrees."""
        found = {}
        for name, _, matrix in training.matrices():
            if self._reference is not None and name not in self._reference:
                self._reference[name] = self._look(name, matrix)  # trained from now on
            then = (self._reference or {}).get(name)
            if then is not None:
                # The rank probe has been there, and left its singular vectors.
                now = training.spectra.get(name)
                if now is None or now.right is None or not now.complete:
                    now = self._look(name, matrix)
                found[f"dyn/drift_deg/{name}"] = drift_between(then, now).angle_deg
        return found

    def _look(self, name: str, matrix: Tensor) -> Spectrum:
        count = min(self.rank, *matrix.shape)
        look = spectrum(matrix, count=count, vectors=True, limit=self.limit, start=self._last.get(name))
        if not look.complete and look.right is not None:
            self._last[name] = look.right
        return look


class BalanceProbe:
    """How far chains of linear layers are from balance.

    Parameters
    ----------
    chains : sequence of Chain
        See :func:`lowdim.dynamics.balance.find_chains`.
    """

    name = "balance"

    def __init__(self, chains: Sequence[Chain]) -> None:
        self.chains = tuple(chains)

    def watch(self, training: Training) -> None:
        """Nothing between reports."""

    @torch.no_grad()
    def measure(self, training: Training) -> dict[str, float]:
        """Return the gap of each chain."""
        found = {}
        for chain in self.chains:
            weights, biases = chain.matrices()
            if any(is_sharded(weight) for weight in weights):
                weights = [gathered(weight) for weight in weights]
                biases = [None if bias is None else gathered(bias) for bias in biases]
            if training.writes:
                found[f"dyn/balance_gap/{chain.name}"] = balancing_gap(
                    weights, biases=biases, kind=chain.kind
                )
        return found
