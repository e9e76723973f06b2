"""One thread of arithmetic for small problems: sharing them out costs more than it brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["few_threads"]

SMALL = 10_000_000
"""Entries of all matrices A_k from which on several threads gain. Below, on two busy cores, waiting for each
other made sweeps 4 to 20 times slower."""


@contextmanager
def few_threads(numbers: int) -> Iterator[None]:
    """Compute with one thread inside, if the problem is small; the caller's number comes back after.

    Parameters
    ----------
    numbers : int
        Frames times measurements times pixels.
    """
    if numbers >= SMALL:
        yield
        return
    with threadpool_limits(1):
        yield
