"""One thread of arithmetic for small problems: sharing them out costs more than it brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["few_threads"]

# Numbers in the frames from which on several threads gain: below, waiting for each other takes longer than
# the work, and on a busy machine many times as long.
SMALL = 500_000


@contextmanager
def few_threads(numbers: int) -> Iterator[None]:
    """Compute with one thread inside, if the problem is small; the caller's number comes back after.

    Parameters
    ----------
    numbers : int
        Entries of the frames.
    """
    if numbers >= SMALL:
        yield
        return
    with threadpool_limits(1):
        yield
