"""The one door to all ways of computing a Blast product."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.kernels.product import (
    Path,
    choose_path,
    feature_major,
    one_token,
    suits_one_token,
    token_major,
)
from lowdim.errors import DataError, LowdimWarning

__all__ = ["blast_product", "candidates", "quickest"]


def _triton(
    x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None = None, *, fused: bool = False
) -> Tensor:
    from lowdim.algebra.kernels.triton import triton_product

    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, U, S, V = x.to(dtype), U.to(dtype), S.to(dtype), V.to(dtype)
    y = triton_product(x, U, S, V, fused=fused)
    return y if bias is None else y + bias.to(y.dtype)


def _fused(x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None = None) -> Tensor:
    return _triton(x, U, S, V, bias, fused=True)


_PATHS: dict[Path, Callable[..., Tensor]] = {
    "feature": feature_major,
    "token": token_major,
    "triton": _triton,
    "fused": _fused,
}

# On CUDA: what was found to be quickest for a device, dtype, sizes and token count (a power of two).
_measured: dict[tuple[Any, ...], Path] = {}


def blast_product(
    x: Tensor, U: Tensor, S: Tensor, V: Tensor, *, bias: Tensor | None = None, path: Path | None = None
) -> Tensor:
    """Return ``y_i = U_i sum_j S[:, i, j] * (V_j x_j) + bias_i`` on the last axis.

    Parameters
    ----------
    x : Tensor of shape (..., b2 q)
    U, S, V : Tensor of shape (b1, p, r), (r, b1, b2), (b2, r, q)
    bias : Tensor of shape (b1 p,), optional
    path : {"feature", "token", "triton", "fused"}, optional
        How. By default, on the CPU (and whenever torch compiles or exports) a
        rule of token and block counts decides; on CUDA the ways are timed
        once per device, dtype, sizes and power of two of the token count,
        unless deterministic algorithms are asked for.

    Returns
    -------
    Tensor of shape (..., b1 p), contiguous

    Raises
    ------
    DataError
        If the path is unknown.

    Examples
    --------
    >>> import torch
    >>> U, S, V = torch.ones(2, 3, 4), torch.ones(4, 2, 5), torch.ones(5, 4, 1)
    >>> blast_product(torch.ones(7, 5), U, S, V).shape
    torch.Size([7, 6])
    """
    if path is None and suits_one_token(x, U, S, V, bias):
        y = one_token(x, U, S, V, bias)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])
    tokens = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    if path is None:
        path = _choose(tokens, U, S, V)
    elif path not in _PATHS:
        raise DataError(
            f"blast_product: path={path!r} is unknown. Use one of {', '.join(map(repr, _PATHS))}."
        )
    y = _PATHS[path](tokens, U, S, V, bias)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])


def _choose(x: Tensor, U: Tensor, S: Tensor, V: Tensor) -> Path:
    if (
        x.is_cuda
        and not torch.compiler.is_compiling()
        and not torch.cuda.is_current_stream_capturing()
        and not torch.are_deterministic_algorithms_enabled()
        and "triton" in candidates(x, U)
    ):
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        key = (x.device, dtype, *U.shape, *V.shape, x.shape[0].bit_length())
        if key not in _measured:
            _measured[key] = quickest(candidates(x, U), lambda path: _seconds(path, x, U, S, V))
        return _measured[key]
    return choose_path(x.shape[0], U.shape[0], V.shape[0])


def candidates(x: Tensor, U: Tensor) -> list[Path]:
    """Return the paths that can run for these tensors."""
    half_or_single = (torch.float16, torch.bfloat16, torch.float32)
    plain: list[Path] = ["feature", "token"]
    if not (x.is_cuda and x.numel() and x.dtype in half_or_single and U.dtype in half_or_single):
        return plain
    if torch._C._functorch.maybe_current_level() is not None or not importlib.util.find_spec("triton"):
        return plain  # inside vmap or grad transforms the kernels cannot see the memory
    return [*plain, "triton", "fused"]


def quickest(paths: list[Path], seconds: Callable[[Path], float]) -> Path:
    """Return the path with the smallest time; one that fails is left out with a warning.

    Parameters
    ----------
    paths : list
        The candidates.
    seconds : callable
        Measures one of them.
    """
    times: dict[Path, float] = {}
    for path in paths:
        try:
            times[path] = seconds(path)
        except Exception as error:
            warnings.warn(
                f"blast_product: the path {path!r} failed on this device ({error}) and is not used. "
                "Name a path that works by path= to silence this.",
                LowdimWarning,
                stacklevel=2,
            )
    return min(times, key=times.__getitem__)


def _seconds(path: Path, *tensors: Tensor) -> float:
    """Return the median time of a forward pass on CUDA."""
    values = [t.detach() for t in tensors]
    times = []
    with torch.no_grad():
        for repetition in range(8):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            _PATHS[path](*values)
            end.record()
            end.synchronize()
            if repetition >= 3:  # the first ones compile and warm up
                times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]
