"""Fitted models as arrays and facts, which `lowdim.store` writes and reads."""

from __future__ import annotations

import json
import os
from typing import Any, TypeVar

import numpy as np

from lowdim import store
from lowdim.errors import DataError

__all__ = ["read_model", "write_model"]

_Model = TypeVar("_Model")


def write_model(model: Any, kind: type, directory: str | os.PathLike[str]) -> None:
    """Write a fitted estimator.

    Parameters
    ----------
    model : TensorModel
    kind : type
        The class that it is read as: a search is kept as what it has chosen.
    directory : path
        Made if need be.

    Raises
    ------
    DataError
        If an option cannot be written as JSON.
    """
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
    weights = model._options().get("class_weight")
    facts = {
        "several": several,
        "flat": np.ndim(model.intercept_) == 0,
        "n_iter": model.n_iter_,
        "objective": float(model.objective_),
        "n_parameters": model.n_parameters_,
        "n_features_in": model.n_features_in_,
        "classes": None if classes is None else {"kind": classes.dtype.str, "labels": classes.tolist()},
        # JSON has no numbers as keys.
        "class_weight": [_plain(list(pair)) for pair in weights.items()]
        if isinstance(weights, dict)
        else None,
        "names": [str(name) for name in getattr(model, "feature_names_in_", ())],
    }
    options = {name: _option(name, value) for name, value in model._options().items()}
    if facts["class_weight"] is not None:
        options["class_weight"] = None
    store.write_model(kind(**options), directory, arrays, facts)


def read_model(kind: type[_Model], directory: str | os.PathLike[str]) -> _Model:
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
    model: Any
    model, arrays, facts = store.read_model(kind, directory)
    for name in ("rank", "shape"):
        if isinstance(getattr(model, name), list):
            setattr(model, name, tuple(getattr(model, name)))
    if "mask" in arrays:
        model.mask = arrays["mask"].astype(bool)
    if facts["class_weight"] is not None:
        model.class_weight = dict(map(tuple, facts["class_weight"]))
    model.coef_ = arrays["coef"]
    model.intercept_ = float(arrays["intercept"][0]) if facts["flat"] else arrays["intercept"]
    forms: list[list[np.ndarray]] = []
    while f"factor.{len(forms)}.0" in arrays:
        prefix = f"factor.{len(forms)}."
        count = sum(name.startswith(prefix) for name in arrays)
        forms.append([arrays[f"{prefix}{k}"] for k in range(count)])
    cores = [arrays[f"core.{i}"] for i in range(len(forms)) if f"core.{i}" in arrays]
    model.factors_ = forms if facts["several"] else forms[0]
    model.core_ = (cores if facts["several"] else cores[0]) if cores else None
    model.shape_ = model.coef_.shape[int(not facts["flat"]) :]
    model.n_iter_, model.objective_ = facts["n_iter"], facts["objective"]
    model.n_parameters_, model.n_features_in_ = facts["n_parameters"], facts["n_features_in"]
    if facts["names"]:
        model.feature_names_in_ = np.array(facts["names"], dtype=object)
    if facts["classes"] is not None:
        model.classes_ = np.array(facts["classes"]["labels"], dtype=np.dtype(facts["classes"]["kind"]))
    return model


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _option(name: str, value: Any) -> Any:
    """Return an option as JSON holds it, or say that it cannot."""
    plain = _plain(value)
    try:
        return plain if isinstance(plain, dict) else json.loads(json.dumps(plain))
    except TypeError:
        raise DataError(
            f"save: the option {name}={value!r} cannot be written as JSON. Set a plain value."
        ) from None
