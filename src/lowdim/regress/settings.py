"""Settings: the options of a run that decide its result."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from lowdim.errors import DataError, RankError
from lowdim.runs import plain

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Options of a run that decide its result, see `regress`.

    Parameters
    ----------
    task, ranks, alphas, decomposition, loss, shape, folds, n_init, seed
        As in `regress`. A single rank or penalty is a list of one; numbers of numpy become those of Python.

    Raises
    ------
    DataError, RankError
        If one is not of its kind.

    Examples
    --------
    >>> Settings("auto", 2, np.float64(0.1), "cp", "logistic", None, 5, 1, np.int64(0)).ranks
    (2,)
    """

    task: str
    ranks: Any
    alphas: Any
    decomposition: str
    loss: str
    shape: Any
    folds: int
    n_init: int
    seed: int

    def __post_init__(self) -> None:
        if self.task not in ("auto", "regression", "classification"):
            raise DataError(
                f"regress: task={self.task!r} is unknown. Use 'auto', 'regression' or 'classification'."
            )
        for name, least in (("folds", None), ("n_init", 1), ("seed", 0)):
            self._put(name, _whole(name, getattr(self, name), least))
        if self.folds < 2:
            raise DataError(f"regress: folds={self.folds} are too few. Use 2 or more; the default is 5.")
        if self.ranks is not None:
            given = self.ranks if _several(self.ranks) else (self.ranks,)
            self._put("ranks", tuple(_rank(rank) for rank in given))
        if self.alphas is not None:
            given = self.alphas if _several(self.alphas) else (self.alphas,)
            self._put("alphas", tuple(_penalty(alpha) for alpha in given))
        for name in ("ranks", "alphas"):
            if getattr(self, name) == ():
                raise DataError(
                    f"regress: {name}={getattr(self, name)!r} names none. Leave it out, or give some."
                )
        if self.shape is not None:
            sizes = self.shape if _several(self.shape) else (self.shape,)
            self._put("shape", tuple(_whole("shape", n, 1) for n in sizes))

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def arguments(self) -> dict[str, Any]:
        """Return the options, JSON-ready, without the seed."""
        found = plain(dataclasses.asdict(self))
        del found["seed"]
        return found


def _several(value: Any) -> bool:
    return np.ndim(value) > 0 if isinstance(value, np.ndarray) else isinstance(value, (list, tuple, range))


def _whole(name: str, value: Any, least: int | None) -> int:
    try:
        found = index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool) or (least is not None and found < least):
        kind = {None: "an integer", 0: "an integer, 0 or more", 1: "a positive integer"}[least]
        raise DataError(f"regress: {name}={value!r} must be {kind}, such as 5.")
    return found


def _rank(rank: Any) -> Any:
    """Return a rank, or one per mode, in numbers of Python."""
    try:
        return tuple(map(index, rank)) if _several(rank) else index(rank)
    except TypeError:
        raise RankError(
            f"regress: rank {rank!r} is no positive integer and no list of them, one per mode. Give ranks "
            "such as (1, 2, 3)."
        ) from None


def _penalty(alpha: Any) -> float:
    try:
        found = float(alpha)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise DataError(
            f"regress: alphas hold {alpha!r}, they must be finite numbers, 0 or more, such as 0.1."
        )
    return found
