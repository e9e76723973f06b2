"""One vector for all processes of a distributed training: replicated (DDP) or in shards (FSDP2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowdim.dynamics.parameters import FlatParameters

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
        """
        if parameters.sharded:
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
