"""Where the models and tokens of a run come from: folders, the Hub, objects, or a callable that makes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lowdim.errors import DataError
from lowdim.policy.phases import Progress
from lowdim.runs import Run, atomic_json, digest, file_digest, plain, read_json

__all__ = [
    "adapter_facts",
    "digests",
    "is_big",
    "is_maker",
    "jsonable",
    "made",
    "name_of_model",
    "processes",
    "tokenizer_of",
]

BIG = 2e9
"""Bytes of weights."""

WEIGHTS = (".safetensors", ".json", ".bin", ".model")
"""Files of a model's folder that are compared when a run is resumed."""


def processes() -> Any:
    """Return the processes of this job, as accelerate sees them."""
    from accelerate import PartialState

    return PartialState()


def is_maker(model: Any) -> bool:
    """Whether it is a callable that makes a model, and no model."""
    return callable(model) and not hasattr(model, "forward")


def is_big(model: Any) -> bool:
    """Whether a model is so large that activations should be computed again rather than kept."""
    if isinstance(model, str | os.PathLike):
        files = Path(model).glob("*.safetensors")
        return not Path(model).is_dir() or sum(path.stat().st_size for path in files) > BIG
    return hasattr(model, "parameters") and sum(p.nbytes for p in model.parameters()) > BIG


def made(run: Run, make: Callable[..., Any], progress: Progress | None) -> tuple[Any, dict[str, Any]]:
    """Let a callable make the small model in the run; an earlier call may have."""
    kept = run.work / "start.json"
    if not kept.is_file():
        folder = run.work / "start"
        folder.mkdir(parents=True, exist_ok=True)
        path, facts = make(folder, progress)
        state = processes()
        state.wait_for_everyone()
        if state.is_main_process:
            atomic_json(kept, plain({"path": os.path.relpath(path, run.work), "facts": facts}))
        state.wait_for_everyone()
    found = read_json(kept)
    return str(run.work / found["path"]), found["facts"]


def name_of_model(model: Any) -> str | None:
    """Return how a model is called in the manifest: its folder, its name on the Hub, or its class."""
    if model is None:
        return None
    if is_maker(model):
        return str(getattr(model, "__name__", type(model).__name__))
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        return str(path.resolve()) if path.is_dir() else os.fspath(model)
    return type(model).__name__


def digests(**models: Any) -> dict[str, str]:
    """Return the digests of the models that are folders; the Hub keeps its own."""
    found = {}
    for name, model in models.items():
        if isinstance(model, str | os.PathLike) and Path(model).is_dir():
            parts = {
                path.name: file_digest(path)
                for path in sorted(Path(model).iterdir())
                if path.suffix in WEIGHTS
            }
            found[name] = digest(parts)
    return found


def adapter_facts(given: Any) -> dict[str, Any] | None:
    """Return what tells two adapter configurations apart."""
    if given is None:
        return None
    names = ("r", "lora_alpha", "lora_dropout", "target_modules")
    found = {name: getattr(given, name, None) for name in names}
    return {
        name: sorted(value) if isinstance(value, set) else jsonable(value) for name, value in found.items()
    }


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer that lies beside a model."""
    from transformers import AutoTokenizer

    path = model if isinstance(model, str | os.PathLike) else getattr(model, "name_or_path", "")
    try:
        found = AutoTokenizer.from_pretrained(os.fspath(path))
    except Exception as error:  # the loader raises what its files and its transport raise
        raise DataError(
            f"codistill: no tokenizer could be read from {str(path)!r} ({type(error).__name__}). Give "
            "tokenizer=..., or a folder that holds one."
        ) from error
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    return found


def jsonable(value: Any) -> Any:
    """Return settings as JSON knows them: enumerations by value, everything else that is strange by name."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [jsonable(entry) for entry in value]
    if hasattr(value, "value") and not isinstance(value, str):
        return value.value
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
