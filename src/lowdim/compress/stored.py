"""Calibration that survives a kill: second moments in one file per input, read back when needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.compress.calibrate import Moments, execution_groups, second_moments
from lowdim.compress.layers import file_name
from lowdim.compress.timing import feed
from lowdim.errors import LowdimWarning
from lowdim.runs import atomic_json, atomic_tensors, read_json, read_tensors

__all__ = ["calibrate", "first_batches"]

CHUNK_BYTES = 4 * 2**30
"""Running sums kept in memory in one pass over the calibration inputs."""


def first_batches(model: nn.Module, batches: Sequence[Any], names: Sequence[str]) -> dict[str, int]:
    """Return, for every layer that runs, the first batch in which it does.

    Nearly always that is the first one; an expert of a mixture may have to wait for its tokens.

    Parameters
    ----------
    model : Module
        Contains the layers.
    batches : sequence
        Calibration inputs.
    names : sequence of str
        Layers.

    Returns
    -------
    dict of str to int
        Layers that no batch reaches are missing.
    """
    found: dict[str, int] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    reached: set[str] = set()
    handles = [
        modules[name].register_forward_pre_hook(lambda *_, name=name: reached.add(name)) for name in names
    ]
    try:
        for number, batch in enumerate(batches):
            with torch.no_grad():
                feed(model, batch)
            for name in names:
                if name in reached:
                    found.setdefault(name, number)
            if len(found) == len(names):
                break
    finally:
        for handle in handles:
            handle.remove()
    return found


def calibrate(
    model: nn.Module,
    batches: Sequence[Any],
    names: Sequence[str],
    *,
    original: nn.Module | None = None,
    folder: Path | None = None,
    first: Mapping[str, int] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Moments, list[str]]:
    """Take second moments as `second_moments` does, in passes that fit the memory, each kept on disk.

    Parameters
    ----------
    model : Module
        The model as it is now.
    batches : sequence
        Calibration inputs.
    names : sequence of str
        Layers.
    original : Module, optional
        For cross moments (sequential calibration).
    folder : Path, optional
        Existing folder for the files; without it everything stays in memory.
    first : mapping of str to int, optional
        From `first_batches`; by default every layer runs in the first batch.
    progress : callable, optional
        Called with (batches done, batches in all, what is going on).

    Returns
    -------
    moments : Moments
    notes : list of str
        Warnings, for the report.

    Raises
    ------
    RunError
        If a file is truncated or was changed; it is named.
    DataError
        If an activation is not finite; the layer is named.
    """
    index = _Index(folder)
    in_memory: dict[str, Tensor] = {}
    crosses: dict[str, Tensor] = {}
    todo = [name for name in names if name not in index.owner]
    chunks = _chunks(model, batches, todo, first or {})
    total = len(batches) * max(len(chunks), 1)
    for number, (start, chunk) in enumerate(chunks):

        def note(done: int, _: int, number: int = number, chunk: Sequence[str] = chunk) -> None:
            if progress is not None:
                progress(number * len(batches) + done, total, f"{len(chunk)} layers")

        with _noted(index.notes):
            part = second_moments(
                model, [*batches[start:], *batches[:start]], chunk, original=original, progress=note
            )
        if folder is None:
            in_memory |= part.matrices
            crosses |= part.crosses
        index.add(part)
    if folder is None:
        return Moments(in_memory, index.owner, index.tokens, crosses), index.notes
    owners = sorted({index.owner[name] for name in names})
    stored = _Stored(folder, owners, "H")
    crossed = _Stored(folder, owners if original is not None else [], "C")
    owner = {name: index.owner[name] for name in names}
    return Moments(stored, owner, index.tokens, crossed), index.notes  # type: ignore[arg-type]


class _Index:
    """Which layers are done: the owner of every layer's matrix, in index.json, written after the matrices."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.owner: dict[str, str] = {}
        self.tokens = 0
        self.notes: list[str] = []
        if folder is not None and (folder / "index.json").exists():
            stored = read_json(folder / "index.json")
            self.owner, self.tokens, self.notes = stored["owner"], stored["tokens"], stored["notes"]

    def add(self, part: Moments) -> None:
        """Store the matrices of a pass."""
        self.owner |= part.owner
        self.tokens = max(self.tokens, part.tokens)
        if self.folder is None:
            return
        for name, H in part.matrices.items():
            tensors = {"H": H, "C": part.crosses[name]} if name in part.crosses else {"H": H}
            atomic_tensors(self.folder / file_name(name), tensors, {"layer": name})
        atomic_json(
            self.folder / "index.json", {"owner": self.owner, "tokens": self.tokens, "notes": self.notes}
        )


class _Stored(Mapping[str, Tensor]):
    """Matrices that lie on disk; the one read last stays in memory (query, key and value ask in turn)."""

    def __init__(self, folder: Path, names: Sequence[str], key: str) -> None:
        self.folder, self.names, self.key = folder, list(names), key
        self.last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        if self.last is None or self.last[0] != name:
            remedy = (
                f"Delete the folder {self.folder} and run again with --resume (calibration starts anew), "
                "or start over with --restart."
            )
            tensors, _ = read_tensors(self.folder / file_name(name), remedy=remedy)
            self.last = (name, tensors[self.key])
        return self.last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _chunks(
    model: nn.Module, batches: Sequence[Any], names: Sequence[str], first: Mapping[str, int]
) -> list[tuple[int, list[str]]]:
    """Cut the layers into passes: by the batch in which they first run, and by the memory for their sums."""
    chunks: list[tuple[int, list[str]]] = []
    for start in sorted({first.get(name, 0) for name in names}):
        used = CHUNK_BYTES
        members = [name for name in names if first.get(name, 0) == start]
        for group in execution_groups(model, batches[start], members):
            module = model.get_submodule(group[0])
            width = getattr(module, "in_features", None) or module.get_parameter("weight").shape[0]
            need = 8 * int(width) ** 2
            if used + need > CHUNK_BYTES:
                chunks.append((start, []))
                used = 0
            chunks[-1][1].extend(group)
            used += need
    return chunks


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Pass lowdim's warnings on and write them down, so that a resumed run can still tell them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", LowdimWarning)
        shown = warnings.showwarning

        def show(message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
            if issubclass(category, LowdimWarning) and str(message) not in notes:
                notes.append(str(message))
            shown(message, category, *args, **kwargs)

        warnings.showwarning = show
        yield
