"""NIfTI volumes in and out, by nibabel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowdim.errors import DataError, MissingExtra, ShapeError

__all__ = ["is_volume", "read_mask", "read_volumes", "write_volume"]

SUFFIXES = (".nii", ".nii.gz")


def is_volume(path: Path) -> bool:
    """Say whether a file has the name of a NIfTI volume.

    Examples
    --------
    >>> is_volume(Path("brain.nii.gz")), is_volume(Path("brain.gz"))
    (True, False)
    """
    return path.name.lower().endswith(SUFFIXES)


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise MissingExtra("nibabel", extra="imaging", purpose="read NIfTI volumes") from None
    return nibabel


def _opened(path: Path) -> tuple[np.ndarray, np.ndarray]:
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
        return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine, dtype=np.float64)
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise DataError(f"regress: {path.name} cannot be read as NIfTI ({said}). Write it again.") from error


def read_volumes(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read volumes of one grid.

    Parameters
    ----------
    paths : sequence of Path
        One 3-D volume each; or a single file with a 4-D series, whose last axis are the samples.

    Returns
    -------
    volumes : ndarray of float32 of shape (N, n1, n2, n3)
    affine : ndarray of shape (4, 4)
        From voxels to millimeters.

    Raises
    ------
    DataError
        If a file is damaged, or lies on another grid in space than the first.
    ShapeError
        If sizes differ.
    MissingExtra
        Without nibabel.
    """
    first, affine = _opened(paths[0])
    if len(paths) == 1 and first.ndim == 4:
        return np.ascontiguousarray(np.moveaxis(first, -1, 0)), affine
    if first.ndim != 3:
        raise ShapeError(f"regress: {paths[0].name} has {first.ndim} axes, expected a volume with 3.")
    volumes = np.empty((len(paths), *first.shape), dtype=np.float32)
    for number, path in enumerate(paths):
        values, place = _opened(path)
        if values.shape != first.shape:
            raise ShapeError(
                f"regress: {path.name} has {values.shape} voxels, {paths[0].name} has {first.shape}. Bring "
                "all to one grid."
            )
        if not np.allclose(place, affine, atol=1e-3):
            raise DataError(
                f"regress: {path.name} lies elsewhere in space than {paths[0].name} (other affine). Resample "
                "all to one grid."
            )
        volumes[number] = values
    return volumes, affine


def read_mask(path: Path) -> np.ndarray:
    """Read a mask: True where the volume is not zero.

    Parameters
    ----------
    path : Path

    Returns
    -------
    ndarray of bool of shape (n1, n2, n3)
    """
    return _opened(path)[0] != 0


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume (or a 4-D series) of float32.

    Parameters
    ----------
    path : Path
        Ends in .nii or .nii.gz.
    values : ndarray of shape (n1, n2, n3) or (n1, n2, n3, K)
    affine : ndarray of shape (4, 4)
    """
    nibabel = _nibabel()
    nibabel.save(nibabel.Nifti1Image(np.asarray(values, dtype=np.float32), affine), path)
