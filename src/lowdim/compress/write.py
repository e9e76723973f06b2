"""Write a compressed model as a folder, completely or not at all, and read it into a generic module.

A transformers model becomes a folder for ``AutoModel*.from_pretrained``: weights (in shards if large),
config.json, tokenizer, model card, report, and the side files that sentence-transformers wants. Any other
``nn.Module`` becomes ``model.safetensors`` and ``lowdim.json``, which `load_weights` reads into a fresh
model; for a diffusers model, what that one is built from lies beside them, in ``architecture/``.

All files are first written into a folder beside, flushed, then moved in their place; config.json (or
lowdim.json) goes last, and the old one goes first, so that a folder with it is complete.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lowdim import __version__
from lowdim.compress.card import ARCHITECTURE, model_card
from lowdim.compress.fingerprint import METADATA_KEY, fingerprints, verify
from lowdim.compress.modules import (
    check_version,
    densify,
    format_version,
    install_modules,
    structured_modules,
)
from lowdim.compress.record import library_of
from lowdim.errors import DataError, RunError

__all__ = ["load_weights", "write_checkpoint"]

_LAST = ("lowdim.json", "config.json")  # what makes the folder loadable
_STAGING = ".writing"


def write_checkpoint(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    modules: Mapping[str, Mapping[str, Any]] | None = None,
    report: Mapping[str, Any] | None = None,
    dense: bool = False,
    source: str | os.PathLike[str] | None = None,
    max_shard_size: int | str = "5GB",
) -> list[Path]:
    """Write the model as a folder; other files in it (a run's manifest, earlier pages) stay.

    Parameters
    ----------
    model : PreTrainedModel or nn.Module
        With `StructuredLinear` layers (and smaller embedding tables); not changed. Only transformers reads
        compressed layers by itself: a diffusers model is written as any other module, to be read with
        `load_weights`.
    directory : path
        Created if missing.
    tokenizer : optional
        Tokenizer, image processor or processor: whatever has ``save_pretrained``.
    modules : mapping of str to dict, optional
        Description of these layers and tables, by default read from the model.
    report : mapping, optional
        Written as report.json; its figures go into the model card README.md.
    dense : bool
        Multiply all layers out: an ordinary checkpoint of the same function that loads without lowdim, and is
        as large and as fast as the original.
    source : path, optional
        Folder of the original model, from which the files of sentence-transformers are carried over.
    max_shard_size : int or str
        Largest weight file, in bytes or as "5GB".

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    RunError
        If the disk is full or not writable; nothing half-written stays in the folder.

    Examples
    --------
    >>> import tempfile
    >>> from lowdim.algebra import LowRank, StructuredLinear
    >>> model = nn.Sequential(StructuredLinear(LowRank(8, 4, rank=2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in write_checkpoint(model, folder)]
    ['README.md', 'model.safetensors', 'lowdim.json']
    """
    target = Path(directory)
    staging = target / _STAGING
    try:
        target.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        _write_model(model, staging, modules=modules, dense=dense, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        if source is not None:
            _carry_over(Path(source), staging)
        if report is not None:
            _write_text(
                staging / "report.json", json.dumps(report, indent=2, allow_nan=False, default=str) + "\n"
            )
        _write_text(staging / "README.md", model_card(model, report or {}, dense=dense))
        for weights in staging.glob("*.safetensors"):
            # safetensors writes for the owner alone; the weights may be read by whom the text may.
            shutil.copymode(staging / "README.md", weights)
        return _move_in(staging, target)
    except Exception as error:
        if not _is_disk_error(error):
            raise
        raise _write_error(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_disk_error(error: Exception) -> bool:
    # safetensors and tokenizers, written in Rust, tell of a full disk in exceptions of their own.
    return isinstance(error, OSError) or any(word in str(error) for word in ("os error", "I/O error"))


def _write_error(target: Path, error: Exception) -> RunError:
    try:
        free = f"{shutil.disk_usage(target).free / 1e6:.1f} MB are free there"
    except OSError:
        free = "the folder does not exist"
    return RunError(
        f"The model could not be written to {target}: {error}; {free}. Make room or choose another folder "
        "with "
        "-o, then run the command again with --resume."
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_model(
    model: nn.Module,
    folder: Path,
    *,
    modules: Mapping[str, Mapping[str, Any]] | None,
    dense: bool,
    max_shard_size: int | str,
) -> None:
    if dense:
        # The model itself must stay structured; a copy holds its weights twice for a moment.
        model = densify(copy.deepcopy(model))
    library, compressed = library_of(model), bool(structured_modules(model))
    # diffusers refuses to save with a quantizer that is not its own, and its config takes no further entry.
    if library == "pytorch" or (library == "diffusers" and compressed):
        _write_generic(model, folder, modules)
        if library == "diffusers":
            model.save_config(folder / ARCHITECTURE)  # type: ignore[operator]
        return
    if compressed:
        from lowdim.compress.transformers import attach_config

        attach_config(model, modules)
    model.save_pretrained(folder, max_shard_size=max_shard_size)  # type: ignore[operator]


def _write_generic(model: nn.Module, folder: Path, modules: Mapping[str, Mapping[str, Any]] | None) -> None:
    from safetensors.torch import save_model

    metadata = {"format": "pt", METADATA_KEY: json.dumps(fingerprints(model.state_dict()), sort_keys=True)}
    save_model(model, str(folder / "model.safetensors"), metadata=metadata)
    described = structured_modules(model) if modules is None else dict(modules)
    description = {
        "version": format_version(described),
        "written_by": __version__,
        "class": type(model).__name__,
        "modules": described,
    }
    _write_text(folder / "lowdim.json", json.dumps(description, indent=2) + "\n")


def load_weights(model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Turn a fresh model of the original architecture into the compressed one, in place.

    For models that are no transformers models; those load with ``AutoModel*.from_pretrained``. A fresh
    diffusers model comes from ``Class.from_config(Class.load_config(directory, subfolder="architecture"))``.

    Parameters
    ----------
    model : nn.Module
        As constructed for the original weights; its values do not matter.
    directory : path
        A folder that `write_checkpoint` wrote from an ``nn.Module``.

    Returns
    -------
    nn.Module
        The same object, with structured layers, smaller tables and the stored weights.

    Raises
    ------
    RunError
        If a file is missing, damaged, or of an unknown format version.
    DataError
        If the model is of another architecture.
    ShapeError
        If its layers have other sizes.

    Examples
    --------
    >>> import tempfile
    >>> from lowdim.algebra import LowRank, StructuredLinear
    >>> model = nn.Sequential(StructuredLinear(LowRank(8, 4, rank=2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_checkpoint(model, folder)
    ...     again = load_weights(nn.Sequential(nn.Linear(8, 4, bias=False)), folder)
    >>> type(again[0].operator).__name__
    'LowRank'
    """
    from safetensors.torch import load_model

    folder = Path(directory)
    path, weights = folder / "lowdim.json", folder / "model.safetensors"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no lowdim.json, so it is no compressed nn.Module. A folder with config.json "
            "loads with "
            "transformers' AutoModel.from_pretrained after 'import lowdim'."
        ) from None
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is damaged ({error}). Copy it again.") from error
    check_version(description.get("version"), description.get("written_by"))
    placed = install_modules(model, description["modules"]) if description["modules"] else {}
    shapes = {
        f"{saved}.{key}": tuple(tensor.shape)
        for saved, name in placed.items()
        for key, tensor in model.get_submodule(name).state_dict().items()
    }
    verify([weights], shapes=shapes)
    try:
        load_model(model, str(weights))
    except RuntimeError as error:
        raise DataError(
            f"{weights} does not fit the given {type(model).__name__}: {error} Build the model as it was "
            "built "
            "before compression."
        ) from error
    return model


def _carry_over(source: Path, folder: Path) -> None:
    """Copy what sentence-transformers keeps beside the transformer: pooling, dense heads, settings."""
    listing = source / "modules.json"
    if not listing.is_file():
        return
    entries = json.loads(listing.read_text(encoding="utf-8"))
    for entry in entries:
        path = str(entry.get("path", ""))
        if str(entry.get("type", "")).endswith(".Transformer"):
            entry["path"] = ""  # the compressed transformer lies at the root, wherever the original was
            for name in ("sentence_bert_config.json",):
                if (source / path / name).is_file():
                    shutil.copyfile(source / path / name, folder / name)
        elif path and (source / path).is_dir() and ".." not in Path(path).parts:
            shutil.copytree(source / path, folder / path, dirs_exist_ok=True)
    _write_text(folder / "modules.json", json.dumps(entries, indent=2) + "\n")
    if (source / "config_sentence_transformers.json").is_file():
        shutil.copyfile(
            source / "config_sentence_transformers.json", folder / "config_sentence_transformers.json"
        )


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move_in(staging: Path, target: Path) -> list[Path]:
    _flush(staging)
    names = sorted((path.name for path in staging.iterdir()), key=lambda name: (name in _LAST, name))
    for name in _LAST:
        (target / name).unlink(missing_ok=True)
    # Shards of an earlier, differently cut model would be loaded beside the new ones.
    for stem in ("model", "diffusion_pytorch_model"):
        for old in [*target.glob(f"{stem}*.safetensors"), *target.glob(f"{stem}*.safetensors.index.json")]:
            if old.name not in names:
                old.unlink()
    written = []
    for name in names:
        if (staging / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
        os.replace(staging / name, target / name)
        written.append(target / name)
    return written
