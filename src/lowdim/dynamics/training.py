"""A training as probes see it: its parameters, where they lie, and what to say of it at the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowdim.dynamics.distributed import Layout
from lowdim.dynamics.parameters import FlatParameters, Select
from lowdim.dynamics.shards import gathered
from lowdim.dynamics.spectra import Spectrum, as_matrix
from lowdim.dynamics.thresholds import Stability, trained_by

__all__ = ["Training", "learning_rate"]

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(eq=False)
class Training:
    """The training as the probes see it.

    Parameters
    ----------
    model : nn.Module
        With its wrapper for several processes, where there is one.
    parameters : FlatParameters
        Those that are watched.
    layout : Layout
        How they lie over the processes.
    names : tuple of str
        Of the parameters, without the prefixes of wrappers.
    every : int
        Steps between reports.
    step : int
        The last optimizer step.
    writes : bool
        Whether this process reports; the others only take part in what all have to do together.
    spectra : dict of str to Spectrum
        Of the weights at this report, for the probe that comes next.
    warn : callable
        ``warn(kind, text)``, once for each kind.
    """

    model: nn.Module
    parameters: FlatParameters
    layout: Layout
    names: tuple[str, ...]
    every: int
    warn: Any
    step: int = 0
    writes: bool = True
    spectra: dict[str, Spectrum] = field(default_factory=dict)

    def matrices(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield name, parameter and whole matrix of each weight that is one; all processes have to ask."""
        for name, tensor in zip(self.names, self.parameters.tensors, strict=True):
            if as_matrix(tensor.detach()) is not None:
                whole = as_matrix(gathered(tensor.detach()))
                if self.writes and whole is not None:
                    yield name, tensor, whole

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | None,
        select: Select,
        every: int,
        warn: Callable[[str, str], None],
    ) -> Training:
        """Look at a network and its optimizer.

        Parameters
        ----------
        model : nn.Module
        optimizer : torch.optim.Optimizer or None
            Only parameters that are in it are watched.
        select : str or callable, optional
            Which parameters.
        every : int
        warn : callable

        Returns
        -------
        Training
        """
        parameters = FlatParameters.of(model, select=select, among=trained_by(optimizer), quiet=True)
        alone = not (dist.is_available() and dist.is_initialized())
        return cls(
            model,
            parameters,
            Layout.of(model, parameters),
            tuple(_plain(name) for name in parameters.names),
            every,
            warn,
            writes=alone or dist.get_rank() == 0,
        )

    def follow(self, optimizer: torch.optim.Optimizer | None, select: Select) -> bool:
        """Look at what is trained now, and return whether layers were frozen or thawed since.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer or None
        select : str or callable, optional

        Returns
        -------
        bool
        """
        now = FlatParameters.of(self.model, select=select, among=trained_by(optimizer), quiet=True)
        if now.same(self.parameters):
            return False
        self.parameters = now
        self.names = tuple(_plain(name) for name in now.names)
        return True

    def header(self, optimizer: torch.optim.Optimizer | None, limit: Stability | None) -> dict[str, Any]:
        """Say what is trained; all processes take part.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer or None
        limit : Stability or None
            What it bears.

        Returns
        -------
        dict
        """
        size = torch.tensor(self.parameters.size, device=self.parameters.device)
        return {
            "every": self.every,
            "optimizer": None
            if optimizer is None
            else type(getattr(optimizer, "optimizer", optimizer)).__name__,
            "lr": None if optimizer is None else learning_rate(optimizer),
            "label": "sharpness" if limit is None else limit.label,
            "threshold_rule": None if limit is None else limit.rule,
            "parameters": int(self.layout.total(size)),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate, the largest of all groups.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer

    Returns
    -------
    float
    """
    return max(float(group["lr"]) for group in optimizer.param_groups)


def _plain(name: str) -> str:
    """Return the name of a parameter without the prefixes of wrappers."""
    for prefix in _WRAPPERS:
        name = name.replace(f".{prefix}", ".").removeprefix(prefix)
    return name
