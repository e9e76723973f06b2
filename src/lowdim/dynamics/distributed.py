"""One vector for all processes of a distributed training: replicated (DDP) or in shards (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowdim.dynamics.parameters import FlatParameters
from lowdim.errors import DataError

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """How the flat vectors of a network lie over the processes that train it.

    Parameters
    ----------
    group : ProcessGroup or None
        The processes; None for one process, or several that train apart.
    sharded : bool
        Whether each process holds a part of a vector (FSDP2) or all of it (DDP).
    """

    group: Any = None
    sharded: bool = False

    @classmethod
    def of(cls, model: nn.Module, parameters: FlatParameters) -> Layout:
        """Read it from the network: a DDP wrapper, or parameters that are DTensors.

        Parameters
        ----------
        model : nn.Module
            The network, with its wrapper where there is one.
        parameters : FlatParameters
            Its parameters.

        Returns
        -------
        Layout

        Raises
        ------
        DataError
            If some parameters are in shards and some are not.
        """
        if parameters.sharded:
            _check_shards(parameters)
            meshes = [t.device_mesh for t in parameters.tensors if hasattr(t, "device_mesh")]
            # One dimension: that of fully_shard. On a mesh of two (hybrid), replicas would be summed twice.
            return cls(meshes[0].get_group(meshes[0].ndim - 1), sharded=True)
        for module in model.modules():
            if isinstance(module, nn.parallel.DistributedDataParallel):
                return cls(module.process_group)
        return cls()

    def mean(self, vector: Tensor) -> Tensor:
        """Average a vector that each replica computed from its own data; shards are averaged already.

        Parameters
        ----------
        vector : Tensor
            The same shape in all processes.

        Returns
        -------
        Tensor
        """
        if self.group is None or self.sharded:
            return vector
        dist.all_reduce(vector, group=self.group)
        return vector.div_(dist.get_world_size(self.group))

    def total(self, part: Tensor) -> Tensor:
        """Sum inner products, of which each process knows the share of its shard.

        Parameters
        ----------
        part : Tensor
            Small.

        Returns
        -------
        Tensor
        """
        if self.group is None or not self.sharded:
            return part
        part = part.contiguous()
        dist.all_reduce(part, group=self.group)
        return part

    def agree(self, decision: bool, *, device: torch.device) -> bool:
        """Let the first process decide: who goes on alone waits for ever.

        Parameters
        ----------
        decision : bool
            Of this process.
        device : torch.device
            Where the processes talk.

        Returns
        -------
        bool
            That of the first process.
        """
        if self.group is None:
            return decision
        word = torch.tensor([int(decision)], device=device)
        dist.broadcast(word, src=dist.get_global_rank(self.group, 0), group=self.group)
        return bool(word.item())

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Fail in all processes if one fails inside: those who go on would wait for it for ever.

        Parameters
        ----------
        device : torch.device
            Where the processes talk.

        Yields
        ------
        None

        Raises
        ------
        DataError
            If another process has failed.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.group is not None:
            word = torch.tensor([int(failure is not None)], device=device)
            dist.all_reduce(word, group=self.group)
            if failure is None and bool(word.item()):
                raise DataError(
                    "dynamics: the loss of another process cannot be used; what is wrong is said there. Look "
                    "at its output."
                )
        if failure is not None:
            raise failure

    def seed(self, seed: int) -> int:
        """Return the seed of this process: the same for replicas, another one for each shard.

        Parameters
        ----------
        seed : int
            Of the vector as a whole.

        Returns
        -------
        int
        """
        return seed + (dist.get_rank(self.group) if self.group is not None and self.sharded else 0)


def _check_shards(parameters: FlatParameters) -> None:
    """Refuse copies among the shards: sums over the processes would count them several times."""
    for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
        places: Any = getattr(tensor, "placements", ())
        if not places or not places[-1].is_shard() or any(place.is_shard() for place in places[:-1]):
            how = f"lies as {tuple(places)}" if places else "is a copy in each process"
            raise DataError(
                f"dynamics: {name} {how}, while others are in shards along the last dimension of the mesh "
                f"(FSDP2). Leave out with select= what tensor parallelism or ignored_params= put elsewhere."
            )
