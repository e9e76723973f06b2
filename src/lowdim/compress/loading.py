"""Bring in what is to be compressed: a folder or Hub id with its tokenizer, or a module from Python."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowdim.errors import DataError
from lowdim.runs import digest

__all__ = ["Source", "device_of", "dtype_of", "load", "model_digest"]

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
        In evaluation mode.
    tokenizer : object
        Tokenizer, or None.
    processor : object
        What is saved beside the compressed model: the tokenizer or an image processor.
    folder : Path or None
        Where the files of the original lie, if it is a folder.
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
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(
            f"compress: device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}). "
            "Use 'auto' or 'cpu'; `lowdim doctor` lists what there is."
        ) from error
    return found


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
        A module is used as it is (and moved to `dtype` and `device` if they are given).
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
        if where is not None or kind is not None:
            model = model.to(device=where, dtype=kind)
        folder = Path(str(getattr(getattr(model, "config", None), "_name_or_path", "") or ""))
        found = folder if folder.name and folder.is_dir() else None
        name = found.name if found is not None else type(model).__name__
        return Source(model.eval(), tokenizer, tokenizer, found, name)
    where = device_of(device)
    text = os.fspath(model)
    folder_or_none = _folder(text)
    from lowdim.compress.transformers import read_pretrained, read_processors

    loaded = read_pretrained(text, dtype=kind).to(where).eval()
    processor = tokenizer
    if tokenizer is None:
        tokenizer, processor = read_processors(text)
    return Source(loaded, tokenizer, processor, folder_or_none, text)


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
