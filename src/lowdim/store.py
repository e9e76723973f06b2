"""Models on disk: arrays in safetensors, everything else in JSON with a format version."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from lowdim import __version__
from lowdim.errors import RunError
from lowdim.runs import atomic_json, atomic_tensors, plain, read_json, read_tensors

__all__ = ["read_model", "write_model"]

FORMAT = 1

_Model = TypeVar("_Model")


def write_model(
    model: Any, directory: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> None:
    """Write a fitted estimator.

    Parameters
    ----------
    model : estimator
        Its constructor's arguments are kept, without the random state.
    directory : path
        Made if need be.
    arrays : mapping of str to ndarray
        Real or complex.
    facts : mapping
        What else `load` needs.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{type(model).__name__}.save: {folder} cannot be made: {error.strerror}. Choose another folder."
        ) from error
    options = {
        name: plain(value) for name, value in model.get_params(deep=False).items() if name != "random_state"
    }
    header = {
        "format": FORMAT,
        "model": type(model).__name__,
        "written_by": __version__,
        "options": options,
        "facts": plain(facts),
        "complex": sorted(name for name, array in arrays.items() if np.iscomplexobj(array)),
    }
    tensors = {name: torch.as_tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}
    # safetensors has no complex numbers of double precision: real and imaginary parts on a last axis.
    parts = {n: torch.view_as_real(x).contiguous() if x.is_complex() else x for n, x in tensors.items()}
    atomic_tensors(folder / "model.safetensors", parts, {"model": json.dumps(header)})
    atomic_json(folder / "model.json", header)


def read_model(
    kind: type[_Model], directory: str | os.PathLike[str]
) -> tuple[_Model, dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_model` has written.

    Parameters
    ----------
    kind : type
        The estimator's class.
    directory : path

    Returns
    -------
    model : estimator
        With its options, not yet fitted.
    arrays : dict of ndarray
    facts : dict

    Raises
    ------
    RunError
        If the folder holds no such model, or one of another class or version.
    """
    folder = Path(directory)
    if not (folder / "model.json").is_file():
        raise RunError(
            f"{kind.__name__}.load: {folder} holds no model.json. Give a folder written by save()."
        )
    header = read_json(folder / "model.json")
    if header.get("format") != FORMAT:
        raise RunError(
            f"{kind.__name__}.load: {folder} has format {header.get('format')} (written by lowdim "
            f"{header.get('written_by')}), this lowdim reads {FORMAT}. Install that version, or fit again."
        )
    if header.get("model") != kind.__name__:
        raise RunError(
            f"{kind.__name__}.load: {folder} holds a {header.get('model')}. Use {header.get('model')}.load."
        )
    tensors, _ = read_tensors(folder / "model.safetensors")
    arrays = {
        name: (torch.view_as_complex(x) if name in header["complex"] else x).numpy()
        for name, x in tensors.items()
    }
    return kind(**header["options"]), arrays, header["facts"]
