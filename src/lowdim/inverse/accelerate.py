"""accelerate: the processes of one job, and what each of them has to do."""

from __future__ import annotations

import os
from typing import Any

from lowdim.errors import MissingExtra

__all__ = ["Team", "team"]


class Team:
    """The processes that ``accelerate launch`` or ``torchrun`` has started for one job.

    Parameters
    ----------
    state : accelerate.PartialState or None
        None is a process by itself.
    """

    def __init__(self, state: Any = None) -> None:
        self._state = state
        self.rank = 0 if state is None else int(state.process_index)
        self.size = 1 if state is None else int(state.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process owns the output folder."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for the others."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def agree(self, error: BaseException | None) -> None:
        """Raise in every process if any has failed, so that nobody waits for one that is gone.

        Parameters
        ----------
        error : BaseException or None
            What happened here.

        Raises
        ------
        BaseException
            That of this process, or a RunError that tells of another's.
        """
        if self._state is None:
            if error is not None:
                raise error
            return
        from accelerate.utils import gather_object

        told = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
        if error is not None:
            raise error
        if any(told):
            from lowdim.errors import RunError

            raise RunError(
                f"Another process of this job failed ({next(filter(None, told))}). See its message."
            )


def team() -> Team:
    """Return the processes of this job; accelerate is imported only where there are several.

    Returns
    -------
    Team

    Raises
    ------
    MissingExtra
        If there are several and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Team()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtra(
            "accelerate", extra="transformers", purpose="share images between processes"
        ) from error
    import torch

    return Team(PartialState(cpu=not torch.cuda.is_available()))
