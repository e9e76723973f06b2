"""Film: sequences of images as people have them, read as gray frames."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lowdim.errors import DataError, MissingExtra, ShapeError

__all__ = ["read_film"]

ARRAYS = (".npy", ".npz")
IMAGES = (".tif", ".tiff", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg")

LUMA = np.array([0.299, 0.587, 0.114])
"""Brightness of red, green and blue (ITU-R BT.601), as Pillow weighs them."""


def read_film(
    path: str | os.PathLike[str], *, size: Sequence[int] | int | None = None, frames: int | None = None
) -> np.ndarray:
    """Read frames from a file or a folder of images.

    Parameters
    ----------
    path : path
        NPY, or NPZ with one array: (q, h, w), or (q, h, w, 3) for colors. TIFF, GIF or WebP with several
        frames; a folder of images in the order of their names; MP4 and other videos, with imageio.
    size : (int, int) or int, optional
        Height and width to bring frames to (an int for both), averaging over what is smaller than a pixel.
    frames : int, optional
        How many to take, evenly picked; all by default.

    Returns
    -------
    ndarray of float64, shape (q, h, w)
        Gray values. Unsigned whole numbers, as images have, are divided by the largest of their type; other
        numbers that exceed 1 by the largest of them. Nothing is added, for that would change the ranks of the
        film. Complex arrays stay complex, and as they are.

    Raises
    ------
    DataError
        If the path is missing, of no known format or damaged, or an option is out of range.
    ShapeError
        If it does not hold a sequence of images of one size.
    MissingExtra
        For images without Pillow, and videos without imageio.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "film.npy"
    ...     np.save(path, np.full((9, 4, 4), 51, dtype=np.uint8))
    ...     film = read_film(path, frames=3)
    >>> film.shape, float(film.max())
    ((3, 4, 4), 0.2)
    """
    path = Path(path)
    wanted = _size(size)
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 2):
        raise DataError(f"phase: frames={frames!r} must be a whole number of 2 or more.")
    if not path.exists():
        raise DataError(f"phase: there is no file {path}. Check the name.")
    suffix = "" if path.is_dir() else path.suffix.lower()
    if not path.is_dir() and suffix not in (*ARRAYS, *IMAGES, *VIDEOS):
        raise DataError(
            f"phase: {path.name} has no known format. Give {', '.join((*ARRAYS, *IMAGES, *VIDEOS))}, or a "
            "folder of images."
        )
    if suffix in ARRAYS:
        stack = _read_array(path)
    elif suffix in VIDEOS:
        stack = _stack(_video(path), path)
    else:
        stack = _stack(_images(path), path)
    if len(stack) < 2:
        raise ShapeError(f"phase: {path.name} holds {len(stack)} image, expected a sequence of 2 or more.")
    if frames is not None:
        if frames > len(stack):
            raise DataError(
                f"phase: {path.name} holds {len(stack)} frames, fewer than the {frames} asked for."
            )
        stack = stack[np.linspace(0, len(stack) - 1, frames).round().astype(int)]
    film = _scaled(stack, path.name)
    return film if wanted in (None, film.shape[1:]) else _resized(film, wanted)


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    given = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
    if len(given) != 2 or any(isinstance(n, bool) or int(n) != n or n < 1 for n in given):
        raise DataError(f"phase: size={size!r} must be (height, width) in pixels, such as (64, 64).")
    return int(given[0]), int(given[1])


def _read_array(path: Path) -> np.ndarray:
    try:
        held = np.load(path, allow_pickle=False)
        arrays = {name: held[name] for name in held.files} if hasattr(held, "files") else {"": held}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"phase: {path.name} cannot be read ({_line(error)}). Save a plain numeric array with numpy.save."
        ) from error
    if len(arrays) != 1:
        raise DataError(
            f"phase: {path.name} holds {len(arrays)} arrays ({', '.join(arrays)}), expected one of frames. "
            "Save no others."
        )
    (stack,) = arrays.values()
    if stack.dtype.kind not in "fciub" or not stack.size:
        raise DataError(f"phase: {path.name} holds {stack.dtype} of shape {stack.shape}, expected numbers.")
    if stack.ndim not in (3, 4) or (stack.ndim == 4 and stack.shape[-1] not in (1, 3, 4)):
        raise ShapeError(
            f"phase: {path.name} has shape {stack.shape}, expected (frames, height, width), with 3 more for "
            "colors."
        )
    return stack


def _stack(pictures: Iterable[tuple[str, np.ndarray]], path: Path) -> np.ndarray:
    """Put images of one size on top of each other."""
    stack: list[np.ndarray] = []
    for name, picture in pictures:
        stack.append(picture)
        if picture.shape != stack[0].shape:
            (height, width), (first_height, first_width) = picture.shape[:2], stack[0].shape[:2]
            raise ShapeError(
                f"phase: {name} has {width} x {height} pixels, the first image has {first_width} x "
                f"{first_height}. Bring all to one size."
            )
    if not stack:
        raise ShapeError(f"phase: {path.name} holds no image, expected a sequence of 2 or more.")
    return np.stack(stack)


def _images(path: Path) -> Iterable[tuple[str, np.ndarray]]:
    """Yield names and gray images of a file with several frames, or of a folder."""
    try:
        from PIL import Image, ImageSequence, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("pillow", extra="images", purpose="read images") from None

    def natural(file: Path) -> list[Any]:  # frame10 comes after frame9
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]

    inside = path.iterdir() if path.is_dir() else [path]
    for file in sorted((file for file in inside if file.suffix.lower() in IMAGES), key=natural):
        try:
            with Image.open(file) as image:
                for frame in ImageSequence.Iterator(image):
                    yield file.name, _gray(frame)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
            raise DataError(
                f"phase: {file.name} cannot be read as an image ({_line(error)}). Take it out, or save "
                "it again."
            ) from error


def _gray(image: Any) -> np.ndarray:
    """Return one image as gray values; formats of 16 and 32 bit keep their range."""
    if image.mode in ("F", "I", "1", "L") or image.mode.startswith("I;16"):
        found = np.asarray(image)
        return found.astype(np.uint16) if image.mode.startswith("I;16") else found
    return np.asarray(image.convert("L"))


def _video(path: Path) -> Iterable[tuple[str, np.ndarray]]:
    """Yield name and colors of every frame of a video."""
    if find_spec("imageio") is None:
        raise MissingExtra("imageio", extra="images", purpose="read videos")
    if find_spec("imageio_ffmpeg") is None and find_spec("av") is None:
        raise MissingExtra("imageio-ffmpeg", extra="images", purpose="read videos")
    from imageio import v3

    try:
        for frame in v3.imiter(path):
            yield path.name, np.asarray(frame)
    except Exception as error:  # whatever the decoder raises
        raise DataError(
            f"phase: {path.name} cannot be read as a video ({_line(error)}). Save it again, as MP4 for "
            "example."
        ) from error


def _scaled(stack: np.ndarray, name: str) -> np.ndarray:
    """Return gray values of at most 1."""
    kind = stack.dtype.kind
    film = stack.astype(np.complex128 if kind == "c" else np.float64)
    if film.ndim == 4:  # an alpha channel is left aside
        film = film[..., :3] @ LUMA if film.shape[-1] > 1 else film[..., 0]
    if not np.isfinite(film).all():
        raise DataError(f"phase: {name} holds NaN or infinite numbers. Fill them in first.")
    if kind == "c":
        return film
    if kind in "ub":
        return film / (np.iinfo(stack.dtype).max if kind == "u" else 1.0)
    return film / max(float(np.abs(film).max()), 1.0)


def _resized(film: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if np.iscomplexobj(film):
        return _resized(film.real, size) + 1j * _resized(film.imag, size)
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", extra="images", purpose="resize frames") from None
    # Bilinear weights widen with the reduction, so that nothing is skipped; they do not overshoot.
    height, width = size
    small = [
        np.asarray(
            Image.fromarray(frame.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        )
        for frame in film
    ]
    return np.stack(small).astype(np.float64)


def _line(error: Exception) -> str:
    """Return the first line of what another library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
