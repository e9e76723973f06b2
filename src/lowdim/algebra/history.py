"""History: what an iterative method did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["History", "Reason"]

Reason = Literal["tolerance", "discrepancy", "steps", "diverged", "direct"]


@dataclass(frozen=True)
class History:
    """What an iterative method did, step by step.

    Parameters
    ----------
    objective : tuple of float
        The objective at the start and after every step.
    residual : tuple of float
        A scale-free residual (a relative error) at the same moments.
    seconds : float
        Wall-clock time of the whole iteration, in seconds.
    reason : {"tolerance", "discrepancy", "steps", "diverged", "direct"}
        Why it stopped; "direct" is a closed form that does not iterate.
    notes : tuple of str
        Events worth telling (a ridge that was raised, components re-seeded).

    Examples
    --------
    >>> History(objective=(4.0, 1.0), residual=(1.0, 0.5), seconds=0.1, reason="steps").steps
    1
    """

    objective: tuple[float, ...]
    residual: tuple[float, ...]
    seconds: float
    reason: Reason
    notes: tuple[str, ...] = field(default=())

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return max(len(self.objective) - 1, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a JSON-ready dictionary."""
        return {
            "objective": list(self.objective),
            "residual": list(self.residual),
            "seconds": self.seconds,
            "reason": self.reason,
            "notes": list(self.notes),
        }
