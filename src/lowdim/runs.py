"""A run directory: files that are whole or absent, a manifest, a lock, and what resuming may rely on.

Nothing heavy is imported here: a run can be opened and refused before torch is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdim.errors import LowdimWarning, RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Run",
    "atomic_json",
    "atomic_tensors",
    "atomic_write",
    "digest",
    "file_digest",
    "plain",
    "read_json",
    "read_tensors",
    "staged",
    "versions",
]

FORMAT = 1
"""Version of the manifest and of the work files."""

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_VERSIONED = ("lowdim", "torch", "transformers", "safetensors", "numpy")
_PART = ".part"
_WORK = ".work"
_AGAIN = "Delete this file and run again with --resume (it is made anew), or start over with --restart."


def plain(value: Any) -> Any:
    """Return a value that JSON knows: numbers of Python, lists, NaN and infinity as None.

    Parameters
    ----------
    value : object
        Dictionaries, sequences, numbers of Python and numpy, arrays, strings.

    Returns
    -------
    object

    Examples
    --------
    >>> plain({"ranks": (8, 3), "gain": float("nan")})
    {'ranks': [8, 3], 'gain': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # arrays and numbers of numpy, which is not imported here
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file so that, whatever happens, it is the old one or the new one, never a half.

    The data go into a file beside, which is flushed to the disk and then renamed.

    Parameters
    ----------
    path : path
        Its folder must exist.
    data : bytes or str
        Text is written as UTF-8.

    Raises
    ------
    RunError
        If the disk is full or the folder cannot be written; the file beside is removed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_write(Path(folder) / "a.txt", "whole")
    ...     [p.name for p in Path(folder).iterdir()]
    ['a.txt']
    """
    path = Path(path)
    content = data.encode("utf-8") if isinstance(data, str) else data
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _write_error(path, len(content), error) from error


def atomic_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as indented JSON, whole or not at all.

    Parameters
    ----------
    path : path
        Its folder must exist. In the work folder of a run the object goes under "value" beside its "sha256",
        so that a resumed run notices a change; everywhere else the file is the object.
    obj : object
        JSON-ready; numbers that JSON does not know (NaN, infinity) are refused.

    Raises
    ------
    RunError
        If the disk is full or the folder cannot be written.
    """
    if _is_work(Path(path)):
        obj = json.loads(json.dumps(obj, allow_nan=False))  # as it will be read: tuples are lists
        obj = {"sha256": digest(obj), "value": obj}
    atomic_write(path, json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def staged(
    directory: str | os.PathLike[str], *, names: Sequence[str], report: Mapping[str, Any]
) -> Iterator[Path]:
    """Write a result beside the one that a folder holds, and put it in its place when it is whole.

    Parameters
    ----------
    directory : path
        Made if it is missing. It is complete if it holds a report.json, which goes first and comes last.
    names : sequence of str
        Files and folders that a result may consist of; those of the old one are removed.
    report : mapping
        Contents of report.json.

    Yields
    ------
    Path
        Where to write them.

    Raises
    ------
    RunError
        If it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with staged(folder, names=["a.txt"], report={}) as beside:
    ...         atomic_write(beside / "a.txt", "whole")
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['a.txt', 'report.json']
    """
    folder = Path(directory)
    beside = folder / ".writing"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        (folder / "report.json").unlink(missing_ok=True)
        for name in names:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
            if (beside / name).exists():
                os.replace(beside / name, folder / name)
        beside.rmdir()
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}. Check its permissions, or choose another folder."
        ) from error
    atomic_json(folder / "report.json", report)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `atomic_json` wrote, and verify it in the work folder of a run.

    Parameters
    ----------
    path : path

    Returns
    -------
    object

    Raises
    ------
    RunError
        If it is missing, damaged, or (in a work folder) was changed; the file is named.
    """
    work = _is_work(Path(path))
    remedy = _AGAIN if work else "Start anew with --restart."
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is truncated or damaged ({error}). {remedy}") from error
    if not work:
        return found
    if not isinstance(found, dict) or found.get("sha256") != digest(found.get("value")):
        raise RunError(f"{path} was changed after it was written: its checksum does not fit. {remedy}")
    return found.get("value")


def _is_work(path: Path) -> bool:
    """Whether a file lies in the work folder of a run: below .work, with the manifest beside that folder."""
    for folder in path.parents:
        if (folder / "manifest.json").exists():
            return False  # a run of its own
        if folder.name == _WORK:
            return (folder.parent / "manifest.json").exists()
    return False


def atomic_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as one safetensors file, whole or not at all, with a checksum inside.

    Parameters
    ----------
    path : path
        Its folder must exist.
    tensors : mapping of str to Tensor
        Of any shape and dtype; stored from the CPU.
    metadata : mapping of str to str, optional
        Kept beside the tensors and covered by the checksum.

    Raises
    ------
    RunError
        If the disk is full or the folder cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     atomic_tensors(Path(folder) / "H.safetensors", {"H": torch.eye(2)}, {"tokens": "9"})
    ...     tensors, facts = read_tensors(Path(folder) / "H.safetensors")
    >>> facts, tensors["H"].shape
    ({'tokens': '9'}, torch.Size([2, 2]))
    """
    from safetensors.torch import save

    # Every tensor gets memory of its own: safetensors refuses views of one another.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    facts = dict(metadata or {})
    atomic_write(path, save(plain, metadata={**facts, "sha256": _tensor_digest(plain, facts)}))


def read_tensors(
    path: str | os.PathLike[str], *, remedy: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `atomic_tensors` wrote, and verify it.

    Parameters
    ----------
    path : path
    remedy : str, optional
        What to do about a damaged file; by default to delete it, so that it is made anew.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU.
    metadata : dict of str to str
        As given to `atomic_tensors`.

    Raises
    ------
    RunError
        If the file is missing, truncated or changed; it is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    remedy = _AGAIN if remedy is None else remedy
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path} is truncated or damaged ({error}). {remedy}") from error
    facts: dict[str, str] = dict(header.get("__metadata__", {}))
    if facts.pop("sha256", None) != _tensor_digest(tensors, facts):
        raise RunError(f"{path} was changed after it was written: its checksum does not fit. {remedy}")
    return tensors, facts


def digest(*parts: Any) -> str:
    """Return the SHA-256 of tensors, bytes and JSON-ready values, in this order.

    Parameters
    ----------
    *parts : Tensor, bytes or JSON-ready

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> digest({"rank": 8}) == digest({"rank": 8}), digest({"rank": 8}) == digest({"rank": 9})
    (True, False)
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            total.update(hashlib.sha256(part).digest())
        elif hasattr(part, "untyped_storage"):
            total.update(_one_tensor_digest(part))
        else:
            total.update(hashlib.sha256(json.dumps(part, sort_keys=True).encode()).digest())
    return total.hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file.

    Parameters
    ----------
    path : path

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*extra: str) -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide results.

    Parameters
    ----------
    *extra : str
        Further package names; those that are not installed are left out.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> "torch" in versions()
    True
    """
    found = {"python": platform.python_version()}
    for name in (*_VERSIONED, *extra):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@dataclass
class Run:
    """One job in its output folder; made by `Run.open`.

    Parameters
    ----------
    path : Path
        The output folder.
    manifest : dict
        What manifest.json holds: command, arguments, versions, seed, inputs, start, end, status.
    finished : bool
        The folder already holds the finished results of the same run (only with ``resume=True``).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Run.open(folder, command="compress", arguments={"keep": 0.5}, seed=0) as run:
    ...         atomic_write(run.work / "layer.txt", "half of the work")
    ...     read_json(Path(folder) / "manifest.json")["status"]
    'finished'
    """

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    @property
    def work(self) -> Path:
        """The folder of intermediate files, which vanishes when the run has finished."""
        return self.path / _WORK

    @classmethod
    def join(cls, directory: str | os.PathLike[str]) -> Run:
        """Return the run that another rank of the same job has opened; takes no lock.

        Parameters
        ----------
        directory : path

        Returns
        -------
        Run
        """
        path = Path(directory)
        manifest = read_json(path / "manifest.json")
        return cls(path, manifest, manifest["status"] == "finished")

    def pin(self, name: str, value: str) -> None:
        """Record the digest of an input that is known only after the start, or compare it when resuming.

        Parameters
        ----------
        name : str
            What it is.
        value : str
            Its SHA-256.

        Raises
        ------
        RunError
            If the run was begun with another one.
        """
        known = self.manifest.setdefault("pinned", {})
        if known.get(name, value) != value:
            raise RunError(
                f"{self.path} was begun with another {name} (its contents have changed since). Add --restart "
                "to begin anew, or choose another folder with -o."
            )
        if name not in known:
            known[name] = value
            atomic_json(self.path / "manifest.json", self.manifest)

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        command: str,
        arguments: Mapping[str, Any],
        seed: int | None,
        inputs: Mapping[str, str] | None = None,
        resume: bool = False,
        restart: bool = False,
    ) -> Iterator[Run]:
        """Open (or go on with) a run, lock its folder, and record how it ends.

        Parameters
        ----------
        directory : path
            Created if missing.
        command : str
            The verb, for example "compress".
        arguments : mapping
            JSON-ready options that decide the result.
        seed : int or None
            The seed of the run.
        inputs : mapping of str to str, optional
            Name and SHA-256 of every input.
        resume : bool
            Go on with an unfinished run of the same arguments; also starts one where there is none.
        restart : bool
            Throw away the intermediate files of an earlier run and start anew.

        Yields
        ------
        Run

        Raises
        ------
        RunError
            If another process works in the folder, if it holds a run (and neither `resume` nor `restart` was
            given), a run with other arguments, or files of somebody else, or if it cannot be written.

        Notes
        -----
        The lock is ``flock`` on ``.lock``: the system releases it when the process ends, however it ends.
        """
        path = Path(directory)
        if resume and restart:
            raise RunError(f"{path}: resume goes on with a run and restart throws it away. Give only one.")
        wanted = {
            "format": FORMAT,
            "command": command,
            "arguments": plain(dict(arguments)),
            "seed": plain(seed),
            "inputs": dict(inputs or {}),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{path} cannot be used as an output folder: {error.strerror}. Choose another one with -o."
            ) from error
        with _locked(path):
            run = cls(path)
            run._take_over(wanted, resume=resume, restart=restart)
            if run.finished:
                run._clear()
                yield run
                return
            run._begin(wanted)
            try:
                yield run
            except BaseException as error:
                if run._nothing_done():
                    run._clear()
                    (path / "manifest.json").unlink(missing_ok=True)
                else:
                    run._end(_status(error), error=f"{type(error).__name__}: {error}", strict=False)
                raise
            run._end("finished")
            run._clear()

    def _take_over(self, wanted: dict[str, Any], *, resume: bool, restart: bool) -> None:
        """Look at what is there, and refuse or accept it."""
        manifest = self.path / "manifest.json"
        if restart and (manifest.exists() or self.work.exists()):
            self._clear()
            manifest.unlink(missing_ok=True)
            return
        if not manifest.exists():
            others = sorted(p.name for p in self.path.iterdir() if p.name not in (".lock", _WORK))
            others = [name for name in others if not name.endswith(_PART)]
            if others:
                raise RunError(
                    f"{self.path} is not empty (it holds {', '.join(others[:3])}"
                    f"{', ...' if len(others) > 3 else ''}) and holds no run of lowdim. Choose an empty or "
                    "new folder with -o."
                )
            if any(p.is_file() for p in self.work.rglob("*")):
                raise RunError(
                    f"{self.path} holds work files, but the manifest.json that tells their settings is gone. "
                    "Add --restart to throw them away, or choose another folder with -o."
                )
            return
        found = read_json(manifest)
        if not isinstance(found, dict):
            raise RunError(f"{manifest} is truncated or damaged (no JSON object). Start anew with --restart.")
        if found.get("format") != FORMAT:
            raise RunError(
                f"{manifest} has format {found.get('format')!r}; this lowdim reads {FORMAT}. Use the lowdim "
                f"that wrote it ({found.get('versions', {}).get('lowdim', 'unknown')}), or --restart."
            )
        if not resume:
            state = "a finished run" if found.get("status") == "finished" else "an unfinished run"
            raise RunError(
                f"{self.path} already holds {state} of `lowdim {found.get('command')}` from "
                f"{found.get('start')}. Add --resume to go on with it, --restart to do it again from the "
                "beginning, or choose another folder with -o."
            )
        if differences := _differences(found, wanted):
            raise RunError(
                f"{self.path} holds a run with other settings: {'; '.join(differences)}. Repeat the command "
                "with the former settings to resume, or add --restart to begin anew."
            )
        self._compare_versions(found)
        self.manifest = found
        self.finished = found.get("status") == "finished"

    def _compare_versions(self, found: dict[str, Any]) -> None:
        now, then = versions(), found.get("versions", {})
        changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
        if changed:
            warnings.warn(
                LowdimWarning(
                    f"{self.path} was begun with other versions ({', '.join(changed)}), so the result may "
                    "differ in the last digits from an uninterrupted run. Use --restart to avoid that."
                ),
                stacklevel=4,
            )

    def _begin(self, wanted: dict[str, Any]) -> None:
        self.work.mkdir(exist_ok=True)
        for folder in (self.path, self.work):  # what a killed process was writing
            for part in folder.glob(f".*{_PART}"):
                part.unlink(missing_ok=True)
        start = self.manifest.get("start") or _now()
        pinned = self.manifest.get("pinned", {})
        self.manifest = {**wanted, "pinned": pinned, "versions": versions(), "start": start}
        self.manifest |= {"end": None, "status": "running"}
        atomic_json(self.path / "manifest.json", self.manifest)

    def _nothing_done(self) -> bool:
        """Whether the run has left no file: then a wrong option costs no --restart."""
        others = {p.name for p in self.path.iterdir()} - {".lock", _WORK, "manifest.json"}
        return not others and not any(p.is_file() for p in self.work.rglob("*"))

    def _end(self, status: str, *, error: str | None = None, strict: bool = True) -> None:
        self.manifest |= {"end": _now(), "status": status}
        if error is not None:
            self.manifest["error"] = error
        try:
            atomic_json(self.path / "manifest.json", self.manifest)
        except RunError:
            # A full disk is already being reported by the error on its way up.
            if strict:
                raise

    def _clear(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, or refuse by naming who holds it."""
    import fcntl

    lock = path / ".lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}. Choose another folder with -o."
        ) from error
    held = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(descriptor), os.stat(lock))
        except OSError:
            held = False
        if not held:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
            raise RunError(
                f"{path} is in use by another lowdim process (process id {holder}). Wait until it has "
                "finished, or choose another folder with -o."
            )
        with contextlib.suppress(OSError):  # the process id is only for the message above
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            if held and os.listdir(path) == [lock.name]:  # nothing came of the run
                lock.unlink()
                path.rmdir()
        os.close(descriptor)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say which settings of two manifests differ."""
    told = []
    for key in ("command", "seed"):
        if found.get(key) != wanted[key]:
            told.append(f"{key} was {found.get(key)!r} and is now {wanted[key]!r}")
    then, now = found.get("arguments", {}), wanted["arguments"]
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            told.append(f"{key} was {then.get(key)!r} and is now {now.get(key)!r}")
    then, now = found.get("inputs", {}), wanted["inputs"]
    told.extend(
        f"the input {key} has changed since" for key in sorted({*then, *now}) if then.get(key) != now.get(key)
    )
    return told


def _status(error: BaseException) -> str:
    return "failed" if isinstance(error, Exception) else "interrupted"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(path: Path, size: int, error: OSError) -> RunError:
    need = f"{path} ({size / 1e6:.1f} MB) could not be written: {error.strerror}"
    if error.errno not in _NO_SPACE:
        return RunError(f"{need}. Check the folder and its permissions, or choose another one with -o.")
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free there"
    except OSError:
        free = "the free space is unknown"
    return RunError(
        f"{need}; {free}. Make room (or raise the limit on file sizes), then run again with --resume; what "
        "is finished is kept."
    )


def _one_tensor_digest(tensor: Tensor) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous()
    head = json.dumps([str(flat.dtype), list(flat.shape)]).encode()
    # memoryview over the raw bytes: no dtype of NumPy is needed (bfloat16 has none).
    return hashlib.sha256(head + flat.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


def _tensor_digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    total = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        total.update(name.encode() + b"\0" + _one_tensor_digest(tensors[name]))
    return total.hexdigest()
