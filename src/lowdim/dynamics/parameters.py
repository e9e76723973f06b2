"""The parameters of a network as one flat vector."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowdim.dynamics.shards import is_sharded, local
from lowdim.errors import DataError, LowdimWarning

__all__ = ["FlatParameters", "Select"]

Select = str | Callable[[str], bool] | None
"""Which parameters: a regular expression found in the name, a function of the name, or all."""


@dataclass(frozen=True, eq=False)
class FlatParameters:
    """Named parameters that training changes, and their place in one flat vector.

    Parameters
    ----------
    names : tuple of str
        Of the parameters, in the order of the network.
    tensors : tuple of Tensor
        The parameters themselves; DTensors where the network is sharded.

    Examples
    --------
    >>> import torch
    >>> FlatParameters.of(torch.nn.Linear(3, 2), select="bias").size
    2
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        select: Select = None,
        among: Iterable[Tensor] | None = None,
        quiet: bool = False,
    ) -> FlatParameters:
        """Take the trainable floating-point parameters of a network.

        Parameters
        ----------
        model : nn.Module
            The network.
        select : str or callable, optional
            A regular expression that is searched in the names, or a function of the name.
        among : iterable of Tensor, optional
            Only parameters that are in it, such as those of an optimizer.
        quiet : bool
            Do not warn of parameters that are left out: that was said before.

        Returns
        -------
        FlatParameters

        Raises
        ------
        DataError
            If nothing is left, parameters have no numbers yet (lazy modules, the device "meta"), or DeepSpeed
            has taken them apart.
        """
        if not isinstance(model, nn.Module):
            raise DataError(f"dynamics: got a {type(model).__name__}, expected a torch.nn.Module.")
        wanted = _wanted(select)
        allowed = None if among is None else {id(tensor) for tensor in among}
        chosen: list[tuple[str, Tensor]] = []
        coarse: list[str] = []
        for name, parameter in model.named_parameters():
            if hasattr(parameter, "ds_id"):
                raise DataError(
                    f"dynamics: {name} is taken apart by DeepSpeed ZeRO. Use FSDP2 (fully_shard), whose "
                    f"shards "
                    f"can be moved in place, or DDP."
                )
            if not wanted(name) or (allowed is not None and id(parameter) not in allowed):
                continue
            if nn.parameter.is_lazy(parameter) or parameter.is_meta:
                raise DataError(
                    f"dynamics: {name} has no numbers yet: it is "
                    + ("on the device 'meta'" if parameter.is_meta else "of a lazy module")
                    + ". Materialize the network first (to_empty and load it, or one forward pass)."
                )
            if not parameter.is_floating_point() or parameter.element_size() < 2:
                coarse.append(name)
            elif parameter.requires_grad and parameter.numel():
                chosen.append((name, parameter))
        if coarse and not quiet:
            shown = ", ".join(coarse[:3]) + (f" and {len(coarse) - 3} more" if len(coarse) > 3 else "")
            warnings.warn(
                f"dynamics: {shown}: integers, complex numbers or 8-bit floats have no curvature here and "
                f"are "
                f"left out. Name what is wanted with select= to silence this.",
                LowdimWarning,
                stacklevel=3,
            )
        if not chosen:
            raise DataError(
                f"dynamics: {type(model).__name__} has no parameter to look at"
                + (f" (select={select!r})" if select is not None else "")
                + ": none is a floating-point number, requires a gradient, and is in the optimizer. "
                "Check requires_grad, select and the optimizer."
            )
        return cls(tuple(name for name, _ in chosen), tuple(tensor for _, tensor in chosen))

    @property
    def size(self) -> int:
        """Length of the flat vector: numbers that this process holds."""
        return sum(local(tensor).numel() for tensor in self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        """Of the flat vector: float64 where a parameter is, float32 otherwise."""
        double = any(tensor.dtype == torch.float64 for tensor in self.tensors)
        return torch.float64 if double else torch.float32

    @property
    def device(self) -> torch.device:
        """Of the flat vector: that of the first parameter."""
        return local(self.tensors[0]).device

    @property
    def coarse(self) -> bool:
        """Whether one is of half precision, too coarse for differences of gradients."""
        return any(tensor.element_size() < 4 for tensor in self.tensors)

    @property
    def sharded(self) -> bool:
        """Whether this process holds only a part of them."""
        return any(is_sharded(tensor) for tensor in self.tensors)

    def same(self, other: FlatParameters) -> bool:
        """Whether these are the same tensors.

        Parameters
        ----------
        other : FlatParameters

        Returns
        -------
        bool
        """
        return [id(tensor) for tensor in self.tensors] == [id(tensor) for tensor in other.tensors]

    def flat(self, values: Sequence[Tensor | None]) -> Tensor:
        """Lay tensors of the parameters' shapes end to end; None stands for zeros.

        Parameters
        ----------
        values : sequence of Tensor or None
            One for each parameter.

        Returns
        -------
        Tensor, shape (size,)
            Detached, in `dtype`, on `device`.
        """
        parts = []
        for tensor, value in zip(self.tensors, values, strict=True):
            if value is None:
                parts.append(torch.zeros(local(tensor).numel(), dtype=self.dtype, device=self.device))
            else:
                part = local(value.detach()).reshape(-1)
                parts.append(part.to(device=self.device, dtype=self.dtype))
        return torch.cat(parts)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector into tensors like the parameters (their local shards).

        Parameters
        ----------
        vector : Tensor, shape (size,)
            A flat vector.

        Returns
        -------
        list of Tensor
        """
        held = [local(tensor) for tensor in self.tensors]
        parts = vector.split([tensor.numel() for tensor in held])
        return [
            part.reshape(tensor.shape).to(device=tensor.device, dtype=tensor.dtype)
            for part, tensor in zip(parts, held, strict=True)
        ]


def _wanted(select: Select) -> Callable[[str], bool]:
    if select is None:
        return lambda name: True
    if callable(select):
        return select
    if not isinstance(select, str):
        raise DataError(
            f"dynamics: select={select!r}, expected a regular expression or a function of the name."
        )
    try:
        pattern = re.compile(select)
    except re.error as error:
        raise DataError(f"dynamics: select={select!r} is no regular expression: {error}.") from None
    return lambda name: pattern.search(name) is not None
