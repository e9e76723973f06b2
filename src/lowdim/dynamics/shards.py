"""Parameters that are spread over processes (DTensor, as FSDP2 makes them): what of them is here."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["gathered", "is_sharded", "local"]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which other processes hold parts or copies.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    bool
    """
    # Asked by its look: the module of DTensor takes a while to import.
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: the shard of a DTensor, else all of it.

    Parameters
    ----------
    tensor : Tensor
        Of any kind.

    Returns
    -------
    Tensor
        It shares memory with `tensor`.
    """
    held: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    # Collectives that are under way give a tensor that waits when it is read.
    return held.wait() if hasattr(held, "wait") and not isinstance(held, nn.Parameter) else held


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; every process that holds a part has to ask for it.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    Tensor
    """
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
