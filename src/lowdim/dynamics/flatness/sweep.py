"""Sweep: how flat the minimum is that gradient descent finds, as a function of where it began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lowdim.dynamics import dln
from lowdim.dynamics.dln.initialization import Init
from lowdim.dynamics.flatness.measure import at_minimum
from lowdim.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["InitSweep", "sweep_init"]


@dataclass(frozen=True, eq=False)
class InitSweep:
    """Flatness of the minima reached from different initial scales.

    Parameters
    ----------
    table : DataFrame
        One row per scale and seed: ``sharpness``, ``excess`` over the flattest (NaN with measurements),
        ``trace``, ``trace_ratio`` (over that of balanced layers with the target as product), ``gap``
        (balancing), ``error`` (of the product against the target, relative), ``loss``, ``steps``,
        ``converged``, ``diverged``.
    lr : float
        The learning rate.

    Examples
    --------
    >>> found = sweep_init([2.0, 1.0], depth=2, scales=[0.8, 0.4], seeds=3)
    >>> found.medians()["excess"].is_monotonic_increasing
    True
    """

    table: pd.DataFrame
    lr: float

    def medians(self) -> pd.DataFrame:
        """Return the medians over the seeds, one row per scale, ascending."""
        return self.table.drop(columns=["seed", "converged", "diverged"]).groupby("scale").median()

    def slope(self, column: str, low: float, high: float) -> float:
        """Slope of the medians of a column between two of the scales, both axes logarithmic.

        Parameters
        ----------
        column : str
            Of the table.
        low, high : float
            Scales of the sweep.

        Returns
        -------
        float

        Raises
        ------
        DataError
            If the sweep has no such column or scales.
        """
        medians = self.medians()
        if column not in medians or not {low, high} <= set(medians.index):
            raise DataError(
                f"InitSweep.slope: no {column!r} at {low} and {high}. Use columns "
                f"{', '.join(medians.columns)}, scales {', '.join(map(str, medians.index))}."
            )
        rise = np.log(medians.loc[high, column] / medians.loc[low, column])
        return float(rise / np.log(high / low))


def sweep_init(
    target: Any,
    *,
    depth: int,
    scales: Sequence[float],
    seeds: int | Sequence[int] = 8,
    init: Init = "gaussian",
    lr: float | None = None,
    steps: int = 60_000,
    tol: float = 1e-8,
    measurements: Any = None,
) -> InitSweep:
    """Train deep linear networks from several initial scales and measure the minima that they reach.

    Parameters
    ----------
    target : array-like, shape (m, n) or (d,)
        The matrix M, or its singular values.
    depth : int
        Number of layers L.
    scales : sequence of float
        Initial scales; all start from the same random matrices.
    seeds : int or sequence of int, default 8
        How many random starts, or which.
    init : {"gaussian", "orthogonal", "identity", "aligned"}
        See `DeepLinear`.
    lr : float, optional
        Learning rate of all runs; ``0.1 / S_1`` otherwise, or with measurements 0.1 over the largest
        Gauss-Newton sharpness at the starts and at the balanced target.
    steps : int, default 60,000
        Largest number of steps.
    tol : float, default 1e-8
        A run ends when its loss is below. That is enough for sharpness to 1e-4; null directions of M decay
        so slowly that much less would take very long.
    measurements : array-like, optional
        Matrices A_k (k, m, n) or a mask of bool (m, n); see `at_minimum`.

    Returns
    -------
    InitSweep
        A run that diverged has NaN for its measures.

    Raises
    ------
    DataError, ShapeError
        If an argument makes no sense.

    References
    ----------
    Kwon, Ding, Balzano, Qu, "On the Relationship Between Small Initialization and Flatness in Deep
    Networks", 2024 (the question); that the gap falls like scale^2 and the excess like scale^4 is derived
    and measured here.

    Examples
    --------
    >>> found = sweep_init([2.0, 1.0], depth=2, scales=[0.2, 0.4], seeds=4, tol=1e-12)
    >>> round(found.slope("gap", 0.2, 0.4), 1), round(found.slope("excess", 0.2, 0.4))
    (2.0, 4)
    """
    import pandas as pd

    numbers = list(range(seeds)) if isinstance(seeds, (int, np.integer)) else [int(seed) for seed in seeds]
    if not numbers or not len(scales):
        raise DataError("sweep_init: needs at least one scale and one seed.")
    net = dln.DeepLinear(
        target, depth=depth, init=init, scale=list(scales), seed=numbers, measurements=measurements
    )
    balanced = dln.balanced_layers(net.target, depth=net.depth)
    rate = _safe_rate(net, balanced, measurements) if lr is None else lr
    run = net.fit(rate, steps=steps, tol=tol, record=())
    found = at_minimum(run.layers, measurements=measurements, gn=True)
    M = net.target if net.target.ndim == 2 else net.target.diag()
    P = dln.product(run.layers)
    error = (P - M).square().sum((-2, -1)).sqrt() / M.norm()
    columns: dict[str, Tensor] = {
        "sharpness": found.sharpness,
        "excess": found.excess,
        "trace": found.trace,
        "trace_ratio": found.trace / dln.trace(balanced, measurements=measurements),
        "gap": found.balance_gap,
        "error": error,
        "loss": net.loss(P),
        "steps": run.steps,
        "converged": run.converged,
        "diverged": run.diverged,
    }
    pairs = [(scale, seed) for scale in map(float, scales) for seed in numbers]
    table = pd.DataFrame(pairs, columns=["scale", "seed"])
    for name, values in columns.items():
        table[name] = values.reshape(-1).tolist()
    measures = [name for name in columns if columns[name].is_floating_point()]
    table.loc[table["diverged"], measures] = float("nan")
    return InitSweep(table, float(rate))


def _safe_rate(net: dln.DeepLinear, balanced: list[Tensor], measurements: Any) -> float:
    """Return a tenth of the inverse sharpness: slow enough that the balancing gap hardly drifts."""
    sharp = float(dln.sharpness(balanced, measurements=measurements))
    if measurements is not None:
        starts = dln.sharpness(net.start(), measurements=measurements)
        sharp = max(sharp, float(torch.as_tensor(starts).max()))
    return 0.1 / sharp
