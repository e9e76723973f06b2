"""A Monitor in a loop with accelerate: its trackers, its accumulation of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowdim.errors import DataError

if TYPE_CHECKING:
    from lowdim.dynamics.monitor import Monitor

__all__ = ["AcceleratorLog", "attach"]


class AcceleratorLog:
    """A sink that logs to the trackers of an Accelerator.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
        Its ``init_trackers`` has been called.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Log a report."""
        self._accelerator.log(dict(metrics), step=step)


def attach(monitor: Monitor, accelerator: Any) -> Monitor:
    """Let a Monitor log to an Accelerator, and pass over the steps that only accumulate.

    Parameters
    ----------
    monitor : Monitor
    accelerator : accelerate.Accelerator

    Returns
    -------
    Monitor
        The same.

    Raises
    ------
    DataError
        If that is no Accelerator.
    """
    if not (hasattr(accelerator, "sync_gradients") and hasattr(accelerator, "log")):
        raise DataError(
            f"Monitor: got a {type(accelerator).__name__}, expected the accelerate.Accelerator of the loop."
        )
    monitor.sinks.append(AcceleratorLog(accelerator))
    monitor.ready = lambda: bool(accelerator.sync_gradients)
    return monitor
