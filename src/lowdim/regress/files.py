"""Files: samples and targets as people have them, tables, arrays, folders of images or volumes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.errors import DataError, ShapeError
from lowdim.regress import images
from lowdim.regress.labels import targets_by_name
from lowdim.regress.nibabel import is_volume, read_mask, read_volumes
from lowdim.regress.tables import GENERAL, TARGETS, columns_of, read_table, target_of, targets_in_order
from lowdim.runs import digest

if TYPE_CHECKING:
    import pandas

__all__ = ["Collection", "collection_of", "mask_of", "read_collection"]

TABLES = (".csv", ".tsv")
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True, eq=False)
class Collection:
    """Samples, and what is to be predicted of them.

    Parameters
    ----------
    X : ndarray of shape (N, n1, ..., nd) or (N, p)
    y : ndarray of shape (N,) or None
        Numbers or labels, where they are known.
    samples : tuple of str
        Names of the samples, from files and first columns; else their places.
    features : tuple of str
        Names of the columns of a table.
    kind : {"table", "array", "images", "volumes"}
    affine : ndarray of shape (4, 4) or None
        Of volumes: from voxels to millimeters.
    target : str
        What y is called.

    Examples
    --------
    >>> Collection(np.zeros((3, 2, 2)), None).samples
    ('0', '1', '2')
    """

    X: np.ndarray
    y: np.ndarray | None
    samples: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    kind: str = "array"
    affine: np.ndarray | None = field(default=None)
    target: str = "y"

    def __post_init__(self) -> None:
        if not self.samples:
            object.__setattr__(self, "samples", tuple(map(str, range(len(self.X)))))

    def digest(self) -> str:
        """Return the SHA-256 of samples, targets and names."""
        y = [] if self.y is None else self.y.tolist()
        facts = [str(self.X.dtype), list(self.X.shape), *self.features, *self.samples]
        return digest(np.ascontiguousarray(self.X).tobytes(), facts, y)


def read_collection(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    features: Sequence[str] | None = None,
    new: bool = False,
) -> Collection:
    r"""Read samples and targets.

    Parameters
    ----------
    path : path
        CSV or TSV: one row per sample. NPZ: an array of samples, first axis the samples, and one of targets.
        NPY: samples only. A folder of PNG, JPEG, TIFF images or of NIfTI volumes: one sample per file, or
        one class per subfolder. One NIfTI file with four axes: the last are the samples.
    target : str, optional
        Column (of NPZ: array, of `labels`: column) to predict; "y", "target" or "label" if there is one of
        these.
    labels : path, optional
        CSV with the targets: a column of file names for a folder, else one row per sample in their order.
    features : sequence of str, optional
        Columns of a table to use; all numbers but the target by default.
    new : bool
        Whether these are samples to be predicted: then `target` need not be there, and where a target is
        missing it is unknown (NaN or None; y is None if all are).

    Returns
    -------
    Collection

    Raises
    ------
    DataError
        If a file is missing or damaged, or holds something else.
    ShapeError
        If sizes or numbers of samples differ.
    MissingExtra
        For images without Pillow, volumes without nibabel.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "wine.csv"
    ...     _ = path.write_text("acid,sugar,y\n1,2,3\n4,5,6\n")
    ...     found = read_collection(path)
    >>> found.features, found.y.tolist()
    (('acid', 'sugar'), [3, 6])
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"regress: there is no file {path}. Check the name.")
    table = None if labels is None else read_table(Path(labels))
    if path.is_dir():
        words = None if labels is None else read_table(Path(labels), words=True)
        return _read_folder(path, target, table, words, new)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        if table is not None:
            raise DataError(f"regress: {path.name} is a table and holds its targets. Leave the labels out.")
        return _of_table(read_table(path), path.name, target, features, new)
    if is_volume(path):
        volumes, affine = read_volumes([path])
        if volumes.ndim != 4 or len(volumes) < 2:
            raise ShapeError(f"regress: {path.name} holds one volume, expected a series of them or a folder.")
        return Collection(
            volumes,
            targets_in_order(table, target, len(volumes), new=new),
            (),
            (),
            "volumes",
            affine,
            target_of(table, target, new=new) or "y",
        )
    if suffix in ARRAYS:
        return _read_arrays(path, target, table, new)
    raise DataError(
        f"regress: {path.name} has no known format. Give {', '.join((*TABLES, *ARRAYS))}, .nii, or a folder "
        "of images or volumes."
    )


def collection_of(
    source: Any,
    y: Any = None,
    *,
    target: str | None = None,
    labels: Any = None,
    features: Sequence[str] | None = None,
    new: bool = False,
) -> Collection:
    """Return samples from whatever a user has: a path, a table of pandas, or an array.

    Parameters
    ----------
    source : path, DataFrame, or array-like of shape (N, n1, ..., nd)
    y : array-like of shape (N,), optional
        Targets, in place of those of the source.
    target, labels, features, new
        As in `read_collection`.

    Returns
    -------
    Collection

    Raises
    ------
    DataError, ShapeError, MissingExtra
        If it cannot be used.
    """
    if isinstance(source, (str, os.PathLike)):
        found = read_collection(source, target=target, labels=labels, features=features, new=new)
    elif hasattr(source, "columns") and hasattr(source, "iloc"):
        found = _of_table(source.rename(columns=str), "the table", target, features, new)
    else:
        X = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
        if X.ndim < 2 or not X.size or X.dtype.kind not in "fiub":
            raise DataError(
                f"regress: got {X.dtype} of shape {X.shape}, expected numbers of shape (samples, n1, ..., "
                "nd)."
            )
        found = Collection(X, None)
    if y is not None:
        given = np.asarray(y.detach().cpu() if hasattr(y, "detach") else y)
        if given.shape != (len(found.X),):
            raise ShapeError(
                f"regress: y has shape {given.shape}, expected ({len(found.X)},): one target per sample."
            )
        found = Collection(
            found.X, given, found.samples, found.features, found.kind, found.affine, found.target
        )
    return found


def mask_of(mask: Any) -> np.ndarray | None:
    """Return a mask from an array, or from a NIfTI or NPY file: True where it is not zero.

    Parameters
    ----------
    mask : path, array-like or None

    Returns
    -------
    ndarray of bool or None

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    if mask is None:
        return None
    if not isinstance(mask, (str, os.PathLike)):
        return np.asarray(mask) != 0
    path = Path(mask)
    if not path.exists():
        raise DataError(f"regress: there is no mask {path}. Check the name.")
    if is_volume(path):
        return read_mask(path)
    if path.suffix.lower() in images.SUFFIXES:
        return images.read_images([path])[0] != 0
    if path.suffix.lower() == ".npy":
        return _load(path)[""] != 0
    raise DataError(
        f"regress: the mask {path.name} has no known format. Give .nii, .nii.gz, .npy or an image."
    )


def _of_table(
    table: pandas.DataFrame, name: str, target: str | None, features: Sequence[str] | None, new: bool
) -> Collection:
    X, y, samples, chosen, named = columns_of(table, name, target, features, new=new)
    return Collection(X, y, samples, chosen, "table", None, named)


# ----- arrays -----------------------------------------------------------------------------------------


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        held = np.load(path, allow_pickle=False)
        return {name: held[name] for name in held.files} if path.suffix.lower() == ".npz" else {"": held}
    except (OSError, ValueError, EOFError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise DataError(
            f"regress: {path.name} cannot be read ({said}). Save plain arrays with numpy.savez."
        ) from error


def _read_arrays(path: Path, target: str | None, table: pandas.DataFrame | None, new: bool) -> Collection:
    arrays = _load(path)
    y, named = None, target or "y"
    if table is None and path.suffix.lower() == ".npz":
        if new and target not in arrays:
            target = None if target is None or target.lower() in GENERAL else ""
        if target and target not in arrays:
            raise DataError(f"regress: {path.name} has no array {target!r}. Arrays: {', '.join(arrays)}.")
        automatic = next((name for name in arrays if name.lower() in TARGETS), None)
        found = automatic if target is None else target
        if found:
            y, named = arrays.pop(found), found
    wide = {name: array for name, array in arrays.items() if array.ndim >= 2}
    if len(wide) != 1:
        raise DataError(
            f"regress: {path.name} holds {len(wide)} arrays of samples ({', '.join(wide) or 'none'}), "
            "expected one of shape (samples, n1, ..., nd), and the targets beside it."
        )
    (X,) = wide.values()
    if X.dtype.kind not in "fiub" or not X.size:
        raise DataError(f"regress: {path.name} holds {X.dtype} of shape {X.shape}, expected real numbers.")
    if table is not None:
        y = targets_in_order(table, target, len(X), new=new)
        named = target_of(table, target, new=new) or "y"
    if y is not None and y.shape != (len(X),):
        raise ShapeError(
            f"regress: {named} of {path.name} has shape {y.shape}, expected ({len(X)},): one target per "
            "sample."
        )
    return Collection(X, y, (), (), "array", None, named)


# ----- folders ----------------------------------------------------------------------------------------


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _files(folder: Path) -> list[Path]:
    """Return the images or volumes of a folder; scan10 comes after scan9."""
    kinds = [
        p for p in folder.iterdir() if p.is_file() and (is_volume(p) or p.suffix.lower() in images.SUFFIXES)
    ]
    return sorted(kinds, key=_natural)


def _read_folder(
    folder: Path,
    target: str | None,
    table: pandas.DataFrame | None,
    words: pandas.DataFrame | None,
    new: bool,
) -> Collection:
    files, classes = _files(folder), []
    inside = sorted((p for p in folder.iterdir() if p.is_dir() and _files(p)), key=_natural)
    if files and inside:
        raise DataError(
            f"regress: {folder.name} holds both files and folders of samples. Keep one folder per class, or "
            "all files in one folder with a table of labels."
        )
    for place in inside:
        found = _files(place)
        files += found
        classes += [place.name] * len(found)
    if not files:
        raise DataError(
            f"regress: {folder.name} holds no images and no volumes. Give .png, .jpg, .tif or .nii files."
        )
    volumes = [is_volume(path) for path in files]
    if any(volumes) != all(volumes):
        raise DataError(f"regress: {folder.name} holds images and volumes. Keep one kind.")
    samples = tuple(str(path.relative_to(folder)) for path in files)
    y = np.array(classes) if classes else None
    named = "folder" if classes else "y"
    if table is not None and words is not None:
        column = target_of(table, target, new=new)
        y, named = targets_by_name(table, words, column, samples, new=new), column or "y"
    if all(volumes):
        X, affine = read_volumes(files)
        return Collection(X, y, samples, (), "volumes", affine, named)
    return Collection(images.read_images(files), y, samples, (), "images", None, named)
