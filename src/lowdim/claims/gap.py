"""Gap: is a small difference between two methods more than luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowdim.errors import DataError, ShapeError

__all__ = ["Gap", "paired_bootstrap"]


@dataclass(frozen=True)
class Gap:
    """A difference of two paired figures with a bootstrap interval.

    Parameters
    ----------
    value : float
        The difference on the whole sample.
    low, high : float
        Percentile interval.
    level : float
        Its coverage.

    Examples
    --------
    >>> Gap(0.01, low=-0.002, high=0.022, level=0.95).clear
    False
    """

    value: float
    low: float
    high: float
    level: float

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """Return the gap as a JSON-ready dictionary."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "clear": self.clear,
        }


def paired_bootstrap(
    ours: ArrayLike,
    *,
    other: ArrayLike,
    statistic: Callable[[np.ndarray], float] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Gap:
    """Bootstrap the difference of a statistic over paired items.

    Both methods saw the same items; every draw resamples items, the same for
    both, so that what the items have in common cancels.

    Parameters
    ----------
    ours, other : array_like, shape (items,) or (items, ...)
        The figures of the two methods, item by item. With `statistic` a row
        may carry more than one number (a prediction and its target).
    statistic : callable, optional
        Maps resampled rows to a float; the mean by default.
    draws : int, default 2000
        Number of resamples.
    level : float, default 0.95
        Coverage of the percentile interval.
    seed : int, default 0
        Seed of the resampling.

    Returns
    -------
    Gap
        ``statistic(ours) - statistic(other)`` and its interval.

    Raises
    ------
    ShapeError
        If the two have different numbers of items, or none.
    DataError
        If `level` is not inside (0, 1) or `draws` is not positive.

    References
    ----------
    B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Examples
    --------
    >>> gap = paired_bootstrap([1.1, 2.1, 3.2, 4.1], other=[1.0, 2.0, 3.0, 4.0])
    >>> round(gap.value, 3), gap.clear
    (0.125, True)
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(other, dtype=float)
    if a.ndim == 0 or b.ndim == 0 or len(a) != len(b) or len(a) == 0:
        raise ShapeError(
            f"paired_bootstrap: ours {a.shape} and other {b.shape} must have the same number of items, at"
            " least one."
        )
    if not 0 < level < 1 or draws < 1:
        raise DataError(
            f"paired_bootstrap: level={level} must lie inside (0, 1), draws={draws} be at least 1."
        )
    figure = statistic if statistic is not None else lambda rows: float(np.mean(rows))
    generator = np.random.default_rng(seed)
    differences = np.empty(draws)
    for draw in range(draws):
        items = generator.integers(0, len(a), len(a))
        differences[draw] = figure(a[items]) - figure(b[items])
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Gap(value=figure(a) - figure(b), low=float(low), high=float(high), level=level)
