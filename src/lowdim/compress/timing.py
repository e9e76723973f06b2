"""Time, memory and size of a model before and after."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowdim.errors import DataError

__all__ = ["Batch", "feed", "file_bytes", "parameter_bytes", "peak_activation_bytes", "speed"]

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""One input: a tensor, positional arguments, or keyword arguments."""


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return first.device if first is not None else torch.device("cpu")


def feed(model: nn.Module, batch: Batch) -> Any:
    """Call the model on one input, moved to the model's device.

    Parameters
    ----------
    model : nn.Module
    batch : Tensor, sequence or mapping
        A tensor is the only argument, a sequence the positional arguments, a mapping the keyword arguments.

    Returns
    -------
    Whatever the model returns.
    """
    device = _device(model)
    if isinstance(batch, Tensor):
        return model(_to(batch, device))
    if isinstance(batch, Mapping):
        return model(**{key: _to(value, device) for key, value in batch.items()})
    return model(*[_to(value, device) for value in batch])


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    def apply(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and value.dim() else value

    if isinstance(batch, Tensor):
        return apply(batch)
    if isinstance(batch, Mapping):
        return {key: apply(value) for key, value in batch.items()}
    return [apply(value) for value in batch]


def _resized(batch: Batch, size: int) -> Batch:
    """Repeat or cut the leading axis of every tensor to `size`."""

    def change(value: Tensor) -> Tensor:
        repeats = -(-size // value.shape[0])
        return value.repeat(repeats, *[1] * (value.dim() - 1))[:size]

    return _map(batch, change)


def _plain(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that hold the memory; torchao's quantized weights are made of several."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [inner for name in tensor.__tensor_flatten__()[0] for inner in _plain(getattr(tensor, name))]


def parameter_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; shared ones count once.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    int

    Examples
    --------
    >>> parameter_bytes(nn.Linear(3, 2))
    32
    """
    tensors = [part for tensor in [*model.parameters(), *model.buffers()] for part in _plain(tensor)]
    storages = {(tensor.device, tensor.data_ptr()): tensor.nbytes for tensor in tensors}
    return sum(storages.values())


def file_bytes(directory: str | Path) -> int:
    """Return the bytes of the safetensors files directly in a model folder.

    Parameters
    ----------
    directory : path

    Returns
    -------
    int
    """
    return sum(path.stat().st_size for path in Path(directory).glob("*.safetensors"))


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors alive that operations under it have made."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        # Views of weights and inputs are no new memory.
        self.seen = {tensor.untyped_storage()._cdata for tensor in given}

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            # Wrappers like torchao's have no memory of their own; what they are made of passes here as well.
            if type(tensor) is not Tensor:
                continue
            storage = tensor.untyped_storage()
            # The Python object of a storage lives as long as the memory, so its end is the memory's end.
            key = storage._cdata
            if key not in self.seen:
                self.seen.add(key)
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, key, size)
        return output


@torch.no_grad()
def peak_activation_bytes(model: nn.Module, batch: Batch) -> int:
    """Return the most memory that intermediate results take during one forward pass.

    Parameters
    ----------
    model : nn.Module
    batch : Tensor, sequence or mapping
        As `feed` takes it.

    Returns
    -------
    int
        Bytes, without weights and inputs. On CUDA the allocator is asked; on the CPU the results of all
        operations are counted while they live, without work space inside a kernel.
    """
    device = _device(model)
    if device.type == "cuda":
        feed(model, batch)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        feed(model, batch)
        return torch.cuda.max_memory_allocated(device) - start
    given = [part for tensor in [*model.parameters(), *model.buffers()] for part in _plain(tensor)]
    values = [batch] if isinstance(batch, Tensor) else batch.values() if isinstance(batch, Mapping) else batch
    given += [value for value in values if isinstance(value, Tensor)]
    with _LiveBytes(given) as count:
        feed(model, batch)
    return count.peak


def _once(model: nn.Module, batch: Batch) -> float:
    device = _device(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    feed(model, batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def speed(
    model_before: nn.Module,
    model_after: nn.Module,
    batch: Batch,
    *,
    batches: Sequence[int] = (1, 32),
    repeats: int = 15,
    seconds: float = 20.0,
) -> dict[str, dict[str, float]]:
    """Time two models on the same inputs, turn by turn.

    Interleaving puts both under the same load of the machine, so that the ratio of each pair is worth more
    than the two times.

    Parameters
    ----------
    model_before, model_after : nn.Module
        Called in evaluation mode; their mode is restored afterwards.
    batch : Tensor, sequence or mapping
        One input; its leading axis is repeated or cut to every size in `batches`.
    batches : sequence of int
        Batch sizes.
    repeats : int
        Pairs of measurements per batch size, after one warm-up.
    seconds : float
        Stop a batch size early after this time, but not before five pairs.

    Returns
    -------
    dict of str to dict
        Batch size as text -> ``before_ms``, ``after_ms`` (medians), ``ratio`` (median of before / after of
        each pair: above 1 is faster), ``ratio_low``, ``ratio_high`` (quartiles), ``repeats``,
        ``peak_bytes_before``, ``peak_bytes_after`` (see `peak_activation_bytes`).

    Raises
    ------
    DataError
        If `repeats` or a batch size is below 1.

    Examples
    --------
    >>> timing = speed(nn.Linear(8, 8), nn.Linear(8, 8), torch.ones(1, 8), batches=(1,), repeats=3)
    >>> timing["1"]["before_ms"] > 0
    True
    """
    if repeats < 1 or any(size < 1 for size in batches):
        raise DataError(f"speed: repeats={repeats} and batches={tuple(batches)} must be at least 1.")
    modes = [(model, model.training) for model in (model_before, model_after)]
    result = {}
    try:
        for model, _ in modes:
            model.eval()
        for size in batches:
            inputs = _resized(batch, size)
            # The warm-up also measures the memory.
            peaks = [peak_activation_bytes(model, inputs) for model, _ in modes]
            pairs: list[tuple[float, float]] = []
            start = time.perf_counter()
            while len(pairs) < repeats and (len(pairs) < 5 or time.perf_counter() - start < seconds):
                first = len(pairs) % 2  # alternate who goes first: the second finds warmer caches
                times = [0.0, 0.0]
                for which in (first, 1 - first):
                    times[which] = _once(modes[which][0], inputs)
                pairs.append((times[0], times[1]))
            ratios = sorted(before / after for before, after in pairs)
            quartiles = (
                statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
            )
            result[str(size)] = {
                "before_ms": 1e3 * statistics.median(before for before, _ in pairs),
                "after_ms": 1e3 * statistics.median(after for _, after in pairs),
                "ratio": statistics.median(ratios),
                "ratio_low": quartiles[0],
                "ratio_high": quartiles[2],
                "repeats": float(len(pairs)),
                "peak_bytes_before": float(peaks[0]),
                "peak_bytes_after": float(peaks[1]),
            }
    finally:
        for model, training in modes:
            model.train(training)
    return result
