"""The processes of one job, as ``torchrun`` starts them: who owns which layer, and waiting for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lowdim.errors import RunError

__all__ = ["Ranks"]

# Rank 0 may recover for days while the others wait for it.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """One process among the processes of the job.

    They share nothing but the output folder, which all of them must see, and small messages over gloo.

    Parameters
    ----------
    rank : int
        Number of this process.
    world : int
        How many there are.
    group : object
        Process group for the messages; None when alone.

    Examples
    --------
    >>> Ranks().first
    True
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @classmethod
    @contextmanager
    def here(cls) -> Iterator[Ranks]:
        """Join the other processes that torchrun has started; alone otherwise.

        Yields
        ------
        Ranks
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
            yield cls()
            return
        import torch.distributed as dist

        ours = not dist.is_initialized()
        if ours:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            yield cls(dist.get_rank(), dist.get_world_size(), group)
        finally:
            if ours:
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def wait(self, error: BaseException | None = None) -> None:
        """Wait until every process has come here; an error in one of them ends all.

        Parameters
        ----------
        error : exception, optional
            What went wrong in this process.

        Raises
        ------
        RunError
            If another process reports an error (with its text).
        """
        if self.group is None:
            return
        import torch.distributed as dist

        told: list[str | None] = [None] * self.world
        text = None if error is None else f"{type(error).__name__}: {error}"
        dist.all_gather_object(told, text, group=self.group)
        if error is None and (failed := [i for i, word in enumerate(told) if word is not None]):
            raise RunError(f"process {failed[0]} of {self.world} failed: {told[failed[0]]}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in every process and wait at its end; an error in one is raised in all.

        Yields
        ------
        None

        Raises
        ------
        RunError
            In the processes where the block itself succeeded.
        """
        try:
            yield
        except Exception as error:
            self.wait(error)
            raise
        self.wait()
