"""Fingerprints of weights: a truncated or altered weight file is refused by name.

The SHA-256 of every tensor's bytes is written into the header of the safetensors files. It travels with the
file through copies, shards and hubs, and costs one to three seconds per gigabyte to compare. Files written by
other programs carry no fingerprints; of those only the header and the length are checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from lowdim.errors import RunError

__all__ = ["METADATA_KEY", "fingerprint", "fingerprints", "verify"]

METADATA_KEY = "lowdim.sha256"
"""Name of the entry in the safetensors header: JSON, tensor name to hexadecimal SHA-256."""


def fingerprint(tensor: Tensor) -> str:
    """Return the SHA-256 of the tensor's bytes in row-major order, in its own dtype.

    Parameters
    ----------
    tensor : Tensor
        Any shape, dtype and device.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> fingerprint(torch.zeros(2))[:8]
    'af5570f5'
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the fingerprint of every tensor by name; tensors without data (device "meta") are left out.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        A state dict. Tied tensors are read once.

    Returns
    -------
    dict of str to str
    """
    known: dict[tuple[object, ...], str] = {}
    result = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            continue
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
        if place not in known:
            known[place] = fingerprint(tensor)
        result[name] = known[place]
    return result


def _check(path: Path, expected_shapes: Mapping[str, tuple[int, ...]]) -> None:
    # Imported here: safetensors is light, but torch tensors are only wanted once a file is really read.
    from safetensors import SafetensorError, safe_open

    remedy = "Copy the file again, or write it again with: lowdim compress ... --restart"
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                shape = tuple(file.get_slice(name).get_shape())
                if expected_shapes.get(name, shape) != shape:
                    raise RunError(
                        f"{path}: the weight '{name}' has shape {shape}, but the configuration beside it "
                        "describes "
                        f"{expected_shapes[name]}. The weights and config.json belong to different runs. "
                        f"{remedy}"
                    )
                if name in stored and fingerprint(file.get_tensor(name)) != stored[name]:
                    raise RunError(
                        f"{path}: the weight '{name}' was altered or damaged after it was saved "
                        f"(its SHA-256 differs from the one in the file's header). {remedy}"
                    )
    except (SafetensorError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is truncated or no safetensors file ({error}). {remedy}") from error


def verify(
    files: Sequence[str | os.PathLike[str]], *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """Refuse weight files that are truncated, altered, or do not fit the configuration.

    Parameters
    ----------
    files : sequence of path
        safetensors files; files with another ending are left alone.
    shapes : mapping of str to tuple of int, optional
        Shapes that the configuration promises for some of the tensors.

    Raises
    ------
    RunError
        Naming the file and, where it can be told, the tensor.
    """
    paths = [Path(file) for file in files if str(file).endswith(".safetensors")]
    # Hashing releases the interpreter lock, so shards are read side by side.
    with ThreadPoolExecutor(max_workers=min(4, len(paths) or 1)) as pool:
        for result in [pool.submit(_check, path, shapes or {}) for path in paths]:
            result.result()
