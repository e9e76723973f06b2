"""Bring in what is to be compressed: a folder or Hub id with its tokenizer, or a module from Python."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowdim.errors import DataError
from lowdim.runs import digest

__all__ = ["Source", "device_of", "dtype_of", "folder_of", "load", "model_digest"]

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Source:
    """The original model and what comes with it.

    Parameters
    ----------
    model : Module
        In evaluation mode if it was read from files; a module of the caller keeps its mode.
    tokenizer : object
        Tokenizer, or None.
    processor : object
        What is saved beside the compressed model: the tokenizer or an image processor.
    folder : Path or None
        Where the files of the original lie: its folder, or its snapshot in the cache of the Hub.
    name : str
        For the report.
    """

    model: nn.Module
    tokenizer: Any
    processor: Any
    folder: Path | None
    name: str


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return a dtype by its name or nickname; None means that of the checkpoint.

    Parameters
    ----------
    dtype : str, torch.dtype or None

    Returns
    -------
    torch.dtype or None

    Raises
    ------
    DataError
        If the name is unknown.

    Examples
    --------
    >>> dtype_of("bf16")
    torch.bfloat16
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise DataError(f"compress: dtype={dtype!r} is unknown. Use one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def device_of(device: str | torch.device) -> torch.device:
    """Return the device to work on; "auto" is the GPU of this process if there is one.

    Parameters
    ----------
    device : str or torch.device
        "cuda" without a number is the GPU of this process too: under torchrun that of its local rank.

    Returns
    -------
    torch.device

    Raises
    ------
    DataError
        If it does not exist here.

    Examples
    --------
    >>> device_of("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda", _own_gpu()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        found = torch.device(device)
        if found.type == "cuda" and found.index is None and torch.cuda.is_available():
            found = torch.device("cuda", _own_gpu())
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(
            f"compress: device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}). "
            "Use 'auto' or 'cpu'; `lowdim doctor` lists what there is."
        ) from error
    return found


def _own_gpu() -> int:
    """Return the number of this process's GPU."""
    if "LOCAL_RANK" not in os.environ:
        return torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    # A launcher may show every process its own GPU only; then they all have number 0.
    return int(os.environ["LOCAL_RANK"]) % max(torch.cuda.device_count(), 1)


def folder_of(model: nn.Module) -> Path | None:
    """Return where the files lie that a transformers model was read from; nothing is downloaded.

    Parameters
    ----------
    model : Module

    Returns
    -------
    Path or None
        Its folder, or its snapshot in the cache of the Hub; None for modules that were read from neither.

    Examples
    --------
    >>> folder_of(nn.Linear(2, 2)) is None
    True
    """
    config = getattr(model, "config", None)
    origin = str(getattr(config, "_name_or_path", None) or "")
    return _origin(origin, getattr(config, "_commit_hash", None)) if origin else None


def _origin(origin: str, commit: str | None) -> Path | None:
    if Path(origin).is_dir():
        return Path(origin)
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(origin, "config.json", revision=commit or "main")
    except (ImportError, ValueError):  # ValueError: no name that the Hub allows, as of a folder that is gone
        return None
    return Path(found).parent if isinstance(found, str) else None


def load(
    model: str | os.PathLike[str] | nn.Module,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
) -> Source:
    """Load the original model.

    Parameters
    ----------
    model : path, Hub id or Module
        A module is used as it is, or a copy of it where `dtype` or `device` are others; it is not changed.
    tokenizer : optional
        By default the one in the model's folder.
    dtype : str or torch.dtype, optional
        By default that of the checkpoint.
    device : str or torch.device
        Where to work; "auto" leaves a module where it is.

    Returns
    -------
    Source

    Raises
    ------
    DataError
        If it cannot be found or is quantized already.
    MissingExtra
        If transformers is not installed.
    """
    kind = dtype_of(dtype)
    if isinstance(model, nn.Module):
        where = None if device == "auto" else device_of(device)
        found = folder_of(model)
        # The folder of a snapshot is called by a hash, which tells a reader nothing.
        cached = found is not None and found.parent.name == "snapshots"
        name = type(model).__name__ if found is None or cached else found.name or type(model).__name__
        return Source(_placed(model, kind, where), tokenizer, tokenizer, found, name)
    where = device_of(device)
    text = os.fspath(model)
    folder = _folder(text)
    from lowdim.compress.transformers import read_pretrained, read_processors

    loaded = read_pretrained(text, dtype=kind).to(where).eval()
    processor = tokenizer
    if tokenizer is None:
        tokenizer, processor = read_processors(text)
    return Source(loaded, tokenizer, processor, folder or folder_of(loaded), text)


def _placed(model: nn.Module, dtype: torch.dtype | None, device: torch.device | None) -> nn.Module:
    """Return the module in a dtype on a device: itself if it is so already, else a copy."""

    def fits(tensor: torch.Tensor) -> bool:
        cast = dtype is not None and (tensor.is_floating_point() or tensor.is_complex())
        return (device is None or tensor.device == device) and (not cast or tensor.dtype == dtype)

    if all(fits(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        return model
    return copy.deepcopy(model).to(device=device, dtype=dtype)


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all weights of a model, in the order of their names.

    Parameters
    ----------
    model : Module

    Returns
    -------
    str
    """
    state = model.state_dict()
    return digest(*[part for name in sorted(state) for part in (name, state[name])])


def _folder(text: str) -> Path | None:
    path = Path(text)
    if path.is_dir():
        if not (path / "config.json").is_file():
            generic = (path / "lowdim.json").is_file()
            raise DataError(
                f"{path} holds no config.json"
                + (
                    ": it is a compressed nn.Module, which is already done."
                    if generic
                    else ". Give a folder that transformers' save_pretrained has written, or a Hub id."
                )
            )
        return path
    if path.exists():
        raise DataError(f"{path} is a file. Give the folder that holds config.json and the weights.")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise DataError(f"There is no folder {path}. Check the path, or give a Hub id such as owner/name.")
    return None
