"""8-bit integers on top of the factors, by torchao; and plain 8-bit of the original to compare with.

Weight-only: each row of a factor gets a scale, chosen by torchao's ``Int8Tensor``. torchao's own tensor class
serves two-dimensional linear layers, while BLAST's factors are three-dimensional and meet batched products;
so its numbers are taken over into the operator `Int8` (those of an embedding table into `Int8Embedding`),
which is stored as plain int8 tensors in safetensors files, described by config.json, and loads without
torchao. On CPUs this saves memory and disk, not time.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra import Operator, StructuredLinear
from lowdim.algebra.linear import is_linear, weight_matrix
from lowdim.compress.embedding import Int8Embedding
from lowdim.compress.evaluate import evaluate
from lowdim.compress.int8 import Int8
from lowdim.compress.modules import replace_module
from lowdim.compress.timing import Batch, parameter_bytes, speed
from lowdim.errors import DataError, MissingExtra

__all__ = ["compare_int8", "int8", "int8_original", "int8_table", "quantize", "require"]


def _int8_tensor() -> tuple[Any, Any]:
    try:
        from torchao.quantization import PerRow
        from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor
    except ImportError as error:
        raise MissingExtra("torchao", extra="compress", purpose="store weights as 8-bit integers") from error
    return Int8Tensor, PerRow()


def require() -> None:
    """Refuse 8-bit integers where torchao is missing, before work is spent.

    Raises
    ------
    MissingExtra
        Without torchao.
    """
    _int8_tensor()


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (..., n) and scales (..., 1) of a factor, one scale per row."""
    Int8Tensor, per_row = _int8_tensor()
    result = Int8Tensor.from_hp(matrix, granularity=per_row)
    if matrix.dtype != torch.float32:
        # The scales are stored in the model's dtype; the integers must belong to the scales as stored.
        result = Int8Tensor.from_hp(matrix, granularity=per_row, scale=result.scale.to(matrix.dtype).float())
    return result.qdata, result.scale.to(matrix.dtype)


@torch.no_grad()
def quantize(operator: Operator) -> Int8:
    """Store the factors of an operator as 8-bit integers.

    Parameters
    ----------
    operator : Operator
        In float32, bfloat16 or float16; it is not changed.

    Returns
    -------
    Int8

    Raises
    ------
    MissingExtra
        Without torchao.

    Examples
    --------
    >>> from lowdim.algebra import LowRank
    >>> A = LowRank(64, 32, rank=8)
    >>> x = torch.ones(64)
    >>> bool((quantize(A)(x) - A(x)).norm() < 0.05 * A(x).norm())
    True
    """
    result = Int8(operator)
    for name, parameter in operator.named_parameters():
        key = result._key(name)
        if name in result.names:
            integers, scales = _rounded(parameter.detach())
            getattr(result.integers, key).copy_(integers)
            getattr(result.scales, key).copy_(scales)
        else:
            getattr(result.kept, key).copy_(parameter)
    return result


@torch.no_grad()
def int8_table(table: nn.Embedding) -> Int8Embedding:
    """Store the rows of an embedding table as 8-bit integers.

    Parameters
    ----------
    table : nn.Embedding
        In float32, bfloat16 or float16; it is not changed.

    Returns
    -------
    Int8Embedding
        In the dtype and on the device of the table.

    Raises
    ------
    MissingExtra
        Without torchao.

    Examples
    --------
    >>> table = nn.Embedding(100, 8)
    >>> bool((int8_table(table).weight - table.weight).norm() < 0.01 * table.weight.norm())
    True
    """
    weight = table.weight.detach()
    result = Int8Embedding(
        table.num_embeddings,
        table.embedding_dim,
        padding_idx=table.padding_idx,
        device=weight.device,
        dtype=weight.dtype,
    )
    integers, scales = _rounded(weight)
    result.integers.copy_(integers)
    result.scales.copy_(scales)
    return result


def int8(model: nn.Module) -> nn.Module:
    """Return a copy of a compressed model with the factors of its structured layers in 8-bit integers.

    Parameters
    ----------
    model : nn.Module
        With `StructuredLinear` layers; it is not changed.

    Returns
    -------
    nn.Module
        For inference. `write_checkpoint` and ``save_pretrained`` store it, ``from_pretrained`` loads it.

    Raises
    ------
    MissingExtra
        Without torchao.
    DataError
        If the model has no structured layer.
    """
    model = copy.deepcopy(model)
    layers = [module for module in model.modules() if isinstance(module, StructuredLinear)]
    if not layers:
        raise DataError(
            f"int8: {type(model).__name__} has no compressed layer. Compress it first, or quantize the "
            "original with "
            "torchao.quantization.quantize_."
        )
    for layer in layers:
        if not isinstance(layer.operator, Int8):
            layer.operator = quantize(layer.operator)
    return model


def int8_original(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Return a copy of an uncompressed model with the named layers in torchao's weight-only int8.

    Parameters
    ----------
    model : nn.Module
        The original; it is not changed.
    names : collection of str
        The layers, ``nn.Linear`` or ``Conv1D``, and the tables, ``nn.Embedding``: those that were compressed,
        for a fair comparison.

    Returns
    -------
    nn.Module
        ``Conv1D`` layers, which torchao does not serve, are first written as the equal ``nn.Linear``.

    Raises
    ------
    MissingExtra
        Without torchao.
    """
    _int8_tensor()
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(model)
    for name in names:
        module = model.get_submodule(name)
        if type(module) is nn.Embedding:
            replace_module(model, module, int8_table(module))
        elif is_linear(module) and not isinstance(module, nn.Linear):
            replace_module(model, module, _as_linear(module))
    linear = {name for name in names if isinstance(model.get_submodule(name), nn.Linear)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao announces changes of defaults that do not touch this call
        quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: name in linear)
    return model


def _as_linear(module: nn.Module) -> nn.Linear:
    matrix = weight_matrix(module).detach()
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], device="meta", dtype=matrix.dtype)
    linear.weight = nn.Parameter(matrix.contiguous())
    linear.bias = nn.Parameter(module.bias.detach())  # type: ignore[operator]
    return linear


def compare_int8(
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Batch],
    *,
    names: Collection[str],
    batch: Batch | None = None,
    sizes: tuple[int, ...] = (1, 32),
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Measure int8 of the original beside int8 of the factors: bytes, quality, speed.

    Parameters
    ----------
    original, compressed : nn.Module
        Before and after, both in floating point (or `compressed` already in int8).
    batches : iterable
        Held-out inputs, see `evaluate`.
    names : collection of str
        The compressed layers, and the tables that are to be in int8 on both sides.
    batch : Tensor, sequence or mapping, optional
        Input for the timing; without one, no times are taken.
    sizes : tuple of int
        Batch sizes for the timing.
    **options
        Passed to `evaluate`.

    Returns
    -------
    dict
        ``original`` and ``compressed``, each with ``bytes`` (weights in memory, as good as on disk),
        ``quality`` (against the floating-point original) and ``speed``: batch size -> ``ms`` and ``ratio``
        (time of the floating-point original / this one).
    """
    batches = list(batches)
    result = {}
    layers = [module for module in compressed.modules() if isinstance(module, StructuredLinear)]
    plain = any(not isinstance(layer.operator, Int8) for layer in layers)
    for key, model in (
        ("original", int8_original(original, names)),
        ("compressed", int8(compressed) if plain else compressed),
    ):
        entry: dict[str, Any] = {
            "bytes": parameter_bytes(model),
            "quality": evaluate(original, model, batches, **options),
        }
        if batch is not None:
            times = speed(original, model, batch, batches=sizes)
            entry["speed"] = {
                size: {"ms": value["after_ms"], "ratio": value["ratio"]} for size, value in times.items()
            }
        result[key] = entry
    return result
