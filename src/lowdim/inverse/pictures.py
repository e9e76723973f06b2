"""Pictures: image files in and out."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowdim.errors import DataError, MissingExtra, ShapeError
from lowdim.runs import atomic_write

__all__ = ["SUFFIXES", "Picture", "read_pictures", "write_picture"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")


@dataclass(frozen=True, eq=False)
class Picture:
    """One image.

    Parameters
    ----------
    name : str
        Unique among those that are read together.
    image : Tensor, shape (C, H, W)
        In [0, 1] where it comes from a file.
    """

    name: str
    image: Tensor


def read_pictures(source: Any, *, channels: int | None = None) -> list[Picture]:
    """Read images from a file, a folder, or memory.

    Parameters
    ----------
    source : path, Tensor or ndarray
        A file (PNG, JPEG, TIFF, BMP, NPY) or a folder of them; or images (B, C, H, W), (C, H, W) or (H, W).
        Files become numbers in [0, 1]; what is in memory, and real numbers in an NPY file, is taken as it is.
    channels : int, optional
        1 turns colors gray, 3 repeats gray; by default files are taken as they are.

    Returns
    -------
    list of Picture
        Sorted by name.

    Raises
    ------
    DataError, ShapeError, MissingExtra
        If there is no image, or one cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not files:
                raise DataError(f"{path} holds no image. Expected files that end in {', '.join(SUFFIXES)}.")
        elif path.is_file():
            files = [path]
        else:
            raise DataError(f"{path} does not exist. Give an image file or a folder of them.")
        found = [p for file in files for p in _pictures(file.stem, _read(file), str(file))]
        names = [p.name for p in found]
        if len(set(names)) < len(names):  # a.png beside a.jpg
            found = [Picture(f"{i:05d}-{p.name}", p.image) for i, p in enumerate(found)]
    elif isinstance(source, (Tensor, np.ndarray)):
        found = _pictures("image", torch.as_tensor(source), "source")
    else:
        raise DataError(
            f"source: got a {type(source).__name__}, expected a path or an array of images (B, C, H, W)."
        )
    return found if channels is None else [Picture(p.name, _colored(p, channels)) for p in found]


def _pictures(name: str, array: Tensor, where: str) -> list[Picture]:
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ShapeError(
            f"{where}: shape {tuple(array.shape)} is no image. Expected (H, W), (C, H, W) or (B, C, H, W)."
        )
    if array.is_complex() or not bool(torch.isfinite(array).all()):
        raise DataError(f"{where}: images must be real, finite numbers. Replace NaN and infinity.")
    if array.dtype == torch.uint8:
        array = array.float() / 255
    array = array.to(torch.float32)
    if array.ndim < 4:
        return [Picture(name, array if array.ndim == 3 else array[None])]
    return [Picture(f"{name}-{i:05d}", one) for i, one in enumerate(array)]


def _read(file: Path) -> Tensor:
    """Return a file as (C, H, W), or as the axes of an NPY file."""
    if file.suffix.lower() == ".npy":
        try:
            return torch.as_tensor(np.load(file, allow_pickle=False))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{file} cannot be read as NPY ({error}). Write it by numpy.save, of numbers."
            ) from error
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", extra="images", purpose="read image files") from error
    try:
        with Image.open(file) as opened:
            image = np.asarray(
                opened.convert("RGB") if opened.mode in ("P", "RGBA", "CMYK", "YCbCr", "LA") else opened
            )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as an image ({error}). Expected PNG, JPEG, TIFF, BMP or NPY."
        ) from error
    most = {np.dtype("uint8"): 255.0, np.dtype("uint16"): 65535.0, np.dtype("bool"): 1.0}.get(image.dtype)
    if most is None:  # 32-bit integers hold 16-bit images, floats are taken as they are
        most = 65535.0 if np.issubdtype(image.dtype, np.integer) else 1.0
    array = torch.as_tensor(image.astype(np.float32) / most)
    return array if array.ndim == 2 else array.movedim(-1, 0)


def _colored(picture: Picture, channels: int) -> Tensor:
    image = picture.image
    if len(image) == channels:
        return image
    if channels == 1 and len(image) == 3:
        return (torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1) * image).sum(0, keepdim=True)
    if channels == 3 and len(image) == 1:
        return image.expand(3, -1, -1).clone()
    raise ShapeError(
        f"{picture.name}: {len(image)} channels, but the prior knows images of {channels}. Convert it, or "
        "use another prior."
    )


def write_picture(folder: Path, name: str, image: Tensor, *, value_range: Sequence[float]) -> None:
    """Write an image as NPY, exactly, and as PNG where Pillow is installed and it has 1 or 3 channels.

    Parameters
    ----------
    folder : Path
        Must exist.
    name : str
        Without ending.
    image : Tensor, shape (C, H, W)
    value_range : (float, float)
        Black and white.
    """
    buffer = io.BytesIO()
    np.save(buffer, image.detach().cpu().numpy(), allow_pickle=False)
    atomic_write(folder / f"{name}.npy", buffer.getvalue())
    if len(image) not in (1, 3) or image.ndim != 3:
        return
    try:
        from PIL import Image
    except ImportError:
        return
    low, high = value_range
    levels = (255 * ((image.detach().cpu() - low) / (high - low)).clamp(0, 1)).round().to(torch.uint8).numpy()
    png = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1)).save(png, "PNG")
    atomic_write(folder / f"{name}.png", png.getvalue())
