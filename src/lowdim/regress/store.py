"""Models on disk: arrays in safetensors, everything else in JSON with a format version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from lowdim import __version__
from lowdim.errors import DataError, RunError
from lowdim.runs import atomic_json, atomic_tensors, read_json, read_tensors

__all__ = ["read_model", "write_model"]

FORMAT = 1

_Model = TypeVar("_Model")
_AGAIN = "Fit again, or copy the folder again."


def write_model(model: Any, directory: str | Path) -> None:
    """Write a fitted estimator.

    Parameters
    ----------
    model : TensorModel
    directory : path
        Made if need be.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    several = isinstance(model.factors_[0], list)
    forms = model.factors_ if several else [model.factors_]
    arrays = {"coef": model.coef_, "intercept": np.atleast_1d(model.intercept_)}
    for number, factors in enumerate(forms):
        arrays |= {f"factor.{number}.{k}": factor for k, factor in enumerate(factors)}
    if model.core_ is not None:
        cores = model.core_ if several else [model.core_]
        arrays |= {f"core.{number}": core for number, core in enumerate(cores)}
    if model.mask is not None:
        arrays["mask"] = np.asarray(model.mask, dtype=np.uint8)
    classes = getattr(model, "classes_", None)
    header = {
        "format": FORMAT,
        "model": model._stored_as,
        "written_by": __version__,
        "options": _plain(model._options()),
        "facts": {
            "several": several,
            "flat": np.ndim(model.intercept_) == 0,
            "n_iter": model.n_iter_,
            "objective": float(model.objective_),
            "n_parameters": model.n_parameters_,
            "n_features_in": model.n_features_in_,
            "classes": None if classes is None else {"kind": classes.dtype.str, "labels": classes.tolist()},
            "names": [str(name) for name in getattr(model, "feature_names_in_", ())],
        },
    }
    tensors = {name: torch.as_tensor(np.ascontiguousarray(array)) for name, array in arrays.items()}
    atomic_tensors(folder / "model.safetensors", tensors, {"model": json.dumps(header)})
    atomic_json(folder / "model.json", header)


def read_model(kind: type[_Model], directory: str | Path) -> _Model:
    """Read what `write_model` has written.

    Parameters
    ----------
    kind : type
        The estimator's class.
    directory : path

    Returns
    -------
    estimator

    Raises
    ------
    RunError
        If the folder holds no such model, a damaged one, or one of another class or version.
    """
    folder, name = Path(directory), kind._stored_as  # type: ignore[attr-defined]
    if not (folder / "model.json").is_file():
        raise RunError(f"{name}.load: {folder} holds no model.json. Give a folder written by save().")
    header = read_json(folder / "model.json")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise RunError(
            f"{name}.load: {folder} has format {found}, this lowdim reads {FORMAT}. Use the lowdim that "
            "wrote it, or fit again."
        )
    if header.get("model") != name:
        raise RunError(
            f"{name}.load: {folder} holds a {header.get('model')}. Use {header.get('model')}.load."
        )
    tensors, facts_of_tensors = read_tensors(folder / "model.safetensors", remedy=_AGAIN)
    if json.loads(facts_of_tensors.get("model", "null")) != header:
        raise RunError(
            f"{name}.load: model.json and model.safetensors of {folder} do not belong together. {_AGAIN}"
        )
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    options, facts = header["options"], header["facts"]
    for key in ("rank", "shape"):
        if isinstance(options.get(key), list):
            options[key] = tuple(options[key])
    if isinstance(options.get("class_weight"), dict):
        options["class_weight"] = dict(map(tuple, options["class_weight"]["pairs"]))
    if "mask" in arrays:
        options["mask"] = arrays["mask"].astype(bool)
    model: Any = kind(**options)
    model.coef_ = arrays["coef"]
    model.intercept_ = float(arrays["intercept"][0]) if facts["flat"] else arrays["intercept"]
    forms: list[list[np.ndarray]] = []
    while f"factor.{len(forms)}.0" in arrays:
        prefix = f"factor.{len(forms)}."
        count = sum(key.startswith(prefix) for key in arrays)
        forms.append([arrays[f"{prefix}{k}"] for k in range(count)])
    cores = [arrays[f"core.{i}"] for i in range(len(forms)) if f"core.{i}" in arrays]
    model.factors_ = forms if facts["several"] else forms[0]
    model.core_ = (cores if facts["several"] else cores[0]) if cores else None
    leading = not facts["flat"]
    model.shape_ = model.coef_.shape[int(leading) :]
    model.n_iter_, model.objective_ = facts["n_iter"], facts["objective"]
    model.n_parameters_, model.n_features_in_ = facts["n_parameters"], facts["n_features_in"]
    if facts["names"]:
        model.feature_names_in_ = np.array(facts["names"], dtype=object)
    if facts["classes"] is not None:
        model.classes_ = np.array(facts["classes"]["labels"], dtype=np.dtype(facts["classes"]["kind"]))
    return model


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as JSON holds them, or say which one it cannot."""
    found = {}
    for name, value in options.items():
        value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        value = list(value) if isinstance(value, tuple) else value
        if isinstance(value, dict):  # class weights: JSON has no numbers as keys
            pairs = [
                [getattr(key, "item", lambda key=key: key)(), float(weight)] for key, weight in value.items()
            ]
            value = {"pairs": pairs}
        try:
            found[name] = json.loads(json.dumps(value))
        except TypeError:
            raise DataError(
                f"save: the option {name}={value!r} cannot be written as JSON. Set a plain value."
            ) from None
    return found
