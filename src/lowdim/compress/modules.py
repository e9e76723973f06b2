"""Which layers and embedding tables of a model are compressed: describe, build empty, multiply out.

The description is a dictionary, ready for JSON: name of the layer -> its operator's ``config()`` and whether
it has a bias; or name of the table -> its ``config()``, known by the key "embedding". Nothing here needs
transformers, though its models (``base_model_prefix``, ``Conv1D``) are understood.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lowdim import __version__
from lowdim.algebra import Operator, StructuredLinear
from lowdim.algebra.linear import is_linear, weight_matrix
from lowdim.compress.embedding import CompactEmbedding
from lowdim.errors import DataError, LowdimError, RunError, ShapeError

__all__ = [
    "FORMAT_VERSION",
    "check_version",
    "densify",
    "format_version",
    "install_modules",
    "replace_module",
    "structured_modules",
]

FORMAT_VERSION = 2
"""Newest version of the description: 1 has linear layers, 2 embedding tables too; others are refused."""


def format_version(modules: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the oldest version that can say what `modules` says.

    A model without compressed tables is written in version 1, so that earlier lowdims read it; of one with
    tables they say which version they need, instead of calling the table a wrong linear layer.

    Parameters
    ----------
    modules : mapping of str to dict
        As from `structured_modules`.

    Returns
    -------
    int

    Examples
    --------
    >>> format_version({"fc": {"structure": "lowrank"}}), format_version({"words": {"embedding": "int8"}})
    (1, 2)
    """
    return 2 if any("embedding" in entry for entry in modules.values()) else 1


def check_version(version: Any, written_by: str | None = None) -> None:
    """Refuse a description in a format that this lowdim does not know.

    Parameters
    ----------
    version : int
        As read from the file.
    written_by : str, optional
        The version of lowdim that wrote it.

    Raises
    ------
    RunError
        If `version` is none of 1 to `FORMAT_VERSION`.
    """
    if version not in range(1, FORMAT_VERSION + 1):
        raise RunError(
            f"This model was written in lowdim's format version {version!r} (by lowdim "
            f"{written_by or 'unknown'}); lowdim {__version__} reads versions 1 to {FORMAT_VERSION}. Upgrade "
            "with: pip install -U lowdim, or compress the original model again."
        )


def structured_modules(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the description of every `StructuredLinear` and every smaller embedding table by name.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict of str to dict
        ``{**operator.config(), "bias": bool}``, or ``config()`` of a table; ready for JSON.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, StructuredLinear):
            found[name] = {**module.operator.config(), "bias": module.bias is not None}
        elif isinstance(module, CompactEmbedding):
            found[name] = module.config()
    return found


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever the model uses `old`, in place.

    A layer that is used twice has two parents and one entry in ``named_modules``; all its places change.

    Parameters
    ----------
    model, old, new : nn.Module
    """
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new


def _read_operator(name: str, entry: Mapping[str, Any], **factory: Any) -> Operator:
    if entry.get("structure") == "int8":
        import lowdim.compress.int8  # noqa: F401  (brings the structure "int8")
    config = {key: value for key, value in entry.items() if key != "bias"}
    try:
        if not isinstance(entry.get("bias"), bool):
            raise DataError("'bias' is missing")
        return Operator.from_config(config, **factory)
    except LowdimError as error:
        raise _unusable(name, error) from error


def _unusable(name: str, error: LowdimError) -> DataError:
    return DataError(
        f"config.json: the description of the module '{name}' cannot be used: {error} "
        "If the file was edited or cut, copy it again, or compress the original model again."
    )


def _place_table(model: nn.Module, saved_name: str, name: str, entry: Mapping[str, Any]) -> None:
    """Put an empty table, described by `entry`, in the place of the module `name`."""
    old = model.get_submodule(name)
    if type(old) is not nn.Embedding:
        raise DataError(
            f"config.json describes '{saved_name}' as a compressed embedding table, but in "
            f"{type(model).__name__} it is a {type(old).__name__}. Load the folder with the class it was "
            "saved from."
        )
    weight = old.weight
    try:
        new = CompactEmbedding.from_config(entry, device=weight.device, dtype=weight.dtype)
    except LowdimError as error:
        raise _unusable(saved_name, error) from error
    described = (new.num_embeddings, new.embedding_dim)
    if described != tuple(weight.shape):
        raise ShapeError(
            f"config.json describes '{saved_name}' with shape {described}, but {type(model).__name__} has "
            f"{tuple(weight.shape)} there. The sizes in config.json do not belong to these weights; copy "
            "config.json again."
        )
    new.train(old.training)
    replace_module(model, old, new)


def _place(model: nn.Module, saved_name: str, name: str, entry: Mapping[str, Any]) -> None:
    """Put an empty structured layer, described by `entry`, in the place of the module `name`."""
    old = model.get_submodule(name)
    if not is_linear(old):
        raise DataError(
            f"config.json describes '{saved_name}' as a compressed linear layer, but in "
            f"{type(model).__name__} it is a {type(old).__name__}. Load the folder with the class it was "
            "saved from."
        )
    weight = old.weight
    assert isinstance(weight, torch.Tensor)
    operator = _read_operator(saved_name, entry, device=weight.device, dtype=weight.dtype)
    shape = tuple(weight_matrix(old).shape)
    if (operator.out_features, operator.in_features) != shape:
        raise ShapeError(
            f"config.json describes '{saved_name}' with shape "
            f"{(operator.out_features, operator.in_features)}, but {type(model).__name__} has {shape} "
            "there. The sizes in config.json do not belong to these weights; copy config.json again."
        )
    bias = (
        nn.Parameter(torch.empty(shape[0], device=weight.device, dtype=weight.dtype))
        if entry["bias"]
        else None
    )
    new = StructuredLinear(operator, bias)
    new.train(old.training)
    replace_module(model, old, new)


def install_modules(model: nn.Module, modules: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Put empty structured layers and tables into a fresh model, in place.

    Parameters
    ----------
    model : nn.Module
        A model of the architecture that was compressed; it may live on the device "meta".
    modules : mapping of str to dict
        As from `structured_modules`. Names refer to the model that was saved; a head model accepts names of
        its base model and the other way round (``base_model_prefix``), and leaves out what only belongs to a
        head it does not have.

    Returns
    -------
    dict of str to str
        Saved name -> name in this model, of every layer and table put in.

    Raises
    ------
    DataError
        If the model has no such module, or it is no linear layer or embedding table.
    ShapeError
        If the shapes do not fit.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    prefix = getattr(model, "base_model_prefix", "")
    prefix = f"{prefix}." if prefix else ""
    architectures = getattr(getattr(model, "config", None), "architectures", None) or []
    same_class = type(model).__name__ in architectures or not architectures
    placed: dict[str, str] = {}
    missing = []
    for saved in modules:
        candidates = [saved, prefix + saved] + ([saved.removeprefix(prefix)] if prefix else [])
        name = next((candidate for candidate in candidates if candidate in names), None)
        if name is not None:
            placed[saved] = name
        elif same_class or (prefix and saved.startswith(prefix)):
            missing.append(saved)
        # else: part of a head that this class does not have; transformers reports its weights as unexpected.
    if missing or not placed:
        shown = ", ".join(repr(name) for name in (missing or list(modules))[:5])
        raise DataError(
            f"config.json lists compressed modules that {type(model).__name__} does not have: {shown}. "
            f"The folder was saved from {' / '.join(architectures) or 'another model'}; load it with that "
            "class, "
            "or, if config.json was edited, copy it again."
        )
    for saved, name in placed.items():
        if isinstance(model.get_submodule(name), StructuredLinear | CompactEmbedding):
            continue  # a second name of a module that is there already
        place = _place_table if "embedding" in modules[saved] else _place
        place(model, saved, name, modules[saved])
    return placed


def _original_class(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Return the class of every module in a fresh model of the same architecture."""
    if not hasattr(model, "config") or not hasattr(model, "base_model_prefix"):
        return {}
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        fresh = type(model)(config)
    return {name: type(module) for name, module in fresh.named_modules(remove_duplicate=False)}


def densify(model: nn.Module) -> nn.Module:
    """Multiply every structured layer and table out, in place: the same function with ordinary ones.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Layers that were transformers' ``Conv1D`` (GPT-2) become ``Conv1D`` again.

    Returns
    -------
    nn.Module
        The same model, without any dependence on lowdim.
    """
    classes = _original_class(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, StructuredLinear | CompactEmbedding):
            continue
        dense: nn.Module = module.densify()
        if classes.get(name, nn.Linear).__name__ == "Conv1D":
            dense = _conv1d(dense, classes[name])
        dense.train(module.training)
        replace_module(model, module, dense)
    if getattr(model, "quantization_method", None) == "lowdim":
        model.hf_quantizer.remove_quantization_config(model)  # type: ignore[union-attr, operator]
    return model


def _conv1d(linear: nn.Module, conv1d: type[nn.Module]) -> nn.Module:
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, torch.Tensor)
    m, n = weight.shape
    with torch.device("meta"):
        layer = conv1d(m, n)
    layer.weight = nn.Parameter(weight.detach().t().contiguous())
    # Conv1D always adds its bias.
    zero = torch.zeros(m, dtype=weight.dtype, device=weight.device)
    layer.bias = nn.Parameter(bias.detach() if isinstance(bias, torch.Tensor) else zero)
    return layer
