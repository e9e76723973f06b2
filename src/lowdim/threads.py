"""One thread of arithmetic for small problems: sharing them out costs more than it brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["few_threads"]


@contextmanager
def few_threads(numbers: int, *, small: int) -> Iterator[None]:
    """Compute with one thread inside, if the problem is small; the caller's number comes back after.

    Below some size, waiting for each other takes threads longer than the work, and on a busy machine many
    times as long.

    Parameters
    ----------
    numbers : int
        Size of the problem.
    small : int
        Size from which on several threads gain.
    """
    if numbers >= small:
        yield
        return
    with threadpool_limits(1):
        yield
