"""Independent work on several cores: one thread of arithmetic for each of several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["each"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(work: Callable[[Item], Result], items: Sequence[Item], *, on_cpu: bool = True) -> Iterator[Result]:
    """Work on independent items and yield the results as they come.

    Factorizing a layer is many small solves: several threads of arithmetic slow one layer down (most of
    all on a busy machine), while several layers at once gain what there are cores. So as many items run
    at once as torch has threads, each with a single one. The numbers then depend neither on the number of
    cores nor on the order.

    Parameters
    ----------
    work : callable
        Called with an item, in any thread.
    items : sequence
        What to work on.
    on_cpu : bool
        False runs the items in turn, in this thread: a GPU is filled by one.

    Yields
    ------
    object
        What `work` returned; on the CPU in the order of finishing.

    Raises
    ------
    Exception
        The first one that `work` raises; items not begun are dropped.

    Examples
    --------
    >>> from lowdim.compress.workers import each
    >>> sorted(each(lambda n: n * n, [3, 1, 2]))
    [1, 4, 9]
    """
    if not on_cpu:
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    # torch counts threads per calling thread (OpenMP), NumPy and SciPy per process: both are set to one.
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            for future in as_completed([pool.submit(work, item) for item in items]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
