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
from lowdim.regress.nibabel import is_volume, read_mask, read_volumes
from lowdim.regress.tables import TARGETS, columns_of, plain_targets, read_table, target_of, targets_in_order
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
        return _read_folder(path, target, table)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        if table is not None:
            raise DataError(f"regress: {path.name} is a table and holds its targets. Leave the labels out.")
        return _of_table(read_table(path), path.name, target, features)
    if is_volume(path):
        volumes, affine = read_volumes([path])
        if volumes.ndim != 4 or len(volumes) < 2:
            raise ShapeError(f"regress: {path.name} holds one volume, expected a series of them or a folder.")
        return Collection(
            volumes,
            targets_in_order(table, target, len(volumes)),
            (),
            (),
            "volumes",
            affine,
            target_of(table, target),
        )
    if suffix in ARRAYS:
        return _read_arrays(path, target, table)
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
) -> Collection:
    """Return samples from whatever a user has: a path, a table of pandas, or an array.

    Parameters
    ----------
    source : path, DataFrame, or array-like of shape (N, n1, ..., nd)
    y : array-like of shape (N,), optional
        Targets, in place of those of the source.
    target, labels, features
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
        found = read_collection(source, target=target, labels=labels, features=features)
    elif hasattr(source, "columns") and hasattr(source, "iloc"):
        found = _of_table(source.rename(columns=str), "the table", target, features)
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
    table: pandas.DataFrame, name: str, target: str | None, features: Sequence[str] | None
) -> Collection:
    X, y, samples, chosen, named = columns_of(table, name, target, features)
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


def _read_arrays(path: Path, target: str | None, table: pandas.DataFrame | None) -> Collection:
    arrays = _load(path)
    y, named = None, target or "y"
    if table is None and path.suffix.lower() == ".npz":
        if target is not None and target not in arrays:
            raise DataError(f"regress: {path.name} has no array {target!r}. Arrays: {', '.join(arrays)}.")
        found = target or next((name for name in arrays if name.lower() in TARGETS), None)
        if found is not None:
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
        y, named = targets_in_order(table, target, len(X)), target_of(table, target)
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


def _read_folder(folder: Path, target: str | None, table: pandas.DataFrame | None) -> Collection:
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
    if table is not None:
        y, named = _by_name(table, target, samples), target_of(table, target)
    if all(volumes):
        X, affine = read_volumes(files)
        return Collection(X, y, samples, (), "volumes", affine, named)
    return Collection(images.read_images(files), y, samples, (), "images", None, named)


def _by_name(table: pandas.DataFrame, target: str | None, samples: tuple[str, ...]) -> np.ndarray:
    """Return the targets of files, which a column of the table names."""
    named = target_of(table, target)
    for column in table.columns:
        if column == named:
            continue
        places = {str(name): row for row, name in enumerate(table[column])}
        rows = [
            places.get(s, places.get(Path(s).name, places.get(Path(s).name.split(".")[0]))) for s in samples
        ]
        if any(row is not None for row in rows):
            if None in rows:
                raise DataError(
                    f"regress: the labels name no {samples[rows.index(None)]} in column {column!r}. Add its "
                    "row, or take the file out."
                )
            return plain_targets(table[named].iloc[rows].reset_index(drop=True))
    raise DataError(
        f"regress: no column of the labels holds the names of the files, such as {samples[0]}. Add one."
    )
