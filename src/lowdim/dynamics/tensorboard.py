"""Reports of a Monitor as scalars of TensorBoard."""

from __future__ import annotations

from math import isfinite
from typing import Any

from lowdim.errors import MissingExtra

__all__ = ["TensorBoard"]


class TensorBoard:
    """Write every metric as a scalar.

    Parameters
    ----------
    writer : SummaryWriter, str or path
        A writer that is in use already, or the folder for a new one.

    Raises
    ------
    MissingExtra
        If a folder is given and tensorboard is not installed.

    Examples
    --------
    >>> class Writer:
    ...     def add_scalar(self, name, value, step):
    ...         print(name, value, step)
    >>> TensorBoard(Writer())(100, {"dyn/loss": 0.5})
    dyn/loss 0.5 100
    """

    def __init__(self, writer: Any) -> None:
        self._owned = not hasattr(writer, "add_scalar")
        if self._owned:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtra(
                    "tensorboard", extra="dynamics", purpose="write its event files"
                ) from error
            writer = SummaryWriter(writer)
        self._writer = writer

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Write a report; what is not finite is left out, since a chart cannot show it."""
        for name, value in metrics.items():
            if isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the writer if it was made here; flush one that was given."""
        if self._owned:
            self._writer.close()
        elif hasattr(self._writer, "flush"):
            self._writer.flush()
