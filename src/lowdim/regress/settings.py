"""Settings: the options of a run that decide its result."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lowdim.errors import DataError
from lowdim.regress.record import plain

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Options of a run that decide its result, see `regress`.

    Parameters
    ----------
    task, ranks, alphas, decomposition, loss, shape, folds, n_init, seed
        As in `regress`.
    """

    task: str
    ranks: tuple[Any, ...] | None
    alphas: tuple[float, ...] | None
    decomposition: str
    loss: str
    shape: tuple[int, ...] | None
    folds: int
    n_init: int
    seed: int

    def __post_init__(self) -> None:
        if self.task not in ("auto", "regression", "classification"):
            raise DataError(
                f"regress: task={self.task!r} is unknown. Use 'auto', 'regression' or 'classification'."
            )
        if self.folds < 2:
            raise DataError(f"regress: folds={self.folds} are too few. Use 2 or more; the default is 5.")

    def arguments(self) -> dict[str, Any]:
        """Return the options, JSON-ready, without the seed."""
        found = plain(dataclasses.asdict(self))
        del found["seed"]
        return found
