"""Images for calibration, recovery and evaluation: a folder of files, through the model's own processor."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdim.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Images", "image_batches", "read_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Images:
    """Files of images, and where they come from.

    Parameters
    ----------
    files : list of Path
        In the order of their names.
    name : str
        The folder, without the folders above it.
    """

    files: list[Path]
    name: str

    def split(self, fraction: float, *, seed: int) -> tuple[Images, Images]:
        """Hold some images out.

        Parameters
        ----------
        fraction : float
            Of the images (one at least) goes to the second part.
        seed : int
            Which ones.

        Returns
        -------
        Images, Images

        Raises
        ------
        DataError
            If there is only one image.
        """
        if len(self.files) < 2:
            raise DataError(
                f"compress: {self.name} holds one image only, so none can be held out. Give more images, or "
                "others to evaluate on."
            )
        count = max(1, round(fraction * len(self.files)))
        held = set(random.Random(seed).sample(range(len(self.files)), count))
        kept = [file for i, file in enumerate(self.files) if i not in held]
        return Images(kept, self.name), Images([self.files[i] for i in sorted(held)], self.name)


def read_images(folder: str | Path) -> Images:
    """List the images in a folder and the folders in it.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Images

    Raises
    ------
    DataError
        If it is no folder or holds no image.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "cat.png").touch()
    ...     [file.name for file in read_images(folder).files]
    ['cat.png']
    """
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"read_images: there is no folder {path}. Check the path.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(
            f"read_images: the folder {path.name} holds no image. Give one with files of the formats "
            f"{', '.join(SUFFIXES)}."
        )
    return Images(files, path.resolve().name)


def image_batches(
    images: Images,
    processor: Any,
    *,
    tokens: int | None = None,
    patch: int = 16,
    batch_size: int = 16,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Read images, and let the processor of the model resize and normalize them.

    Parameters
    ----------
    images : Images
    processor : transformers image processor
        Called with a list of PIL images in RGB.
    tokens : int, optional
        Stop when so many patches are gathered; all images by default.
    patch : int
        Side of a patch, in pixels of the processed image.
    batch_size : int
        Images per batch.
    seed : int
        Which images are taken when there are more than `tokens` needs.

    Returns
    -------
    list of dict of Tensor
        ``pixel_values`` (batch, channels, height, width) and what else the processor gives.

    Raises
    ------
    DataError
        If a file is no image, or the processor's results cannot be put in one batch.
    MissingExtra
        If Pillow is not installed.
    """
    files = list(images.files)
    random.Random(seed).shuffle(files)
    rows: list[dict[str, Tensor]] = []
    gathered = 0
    for start in range(0, len(files), batch_size):
        if tokens is not None and gathered >= tokens:
            break
        row = _processed(files[start : start + batch_size], processor, images.name)
        count, _, height, width = row["pixel_values"].shape
        each = max((height // patch) * (width // patch), 1)
        if tokens is not None and gathered + count * each > tokens:
            count = max(-(-(tokens - gathered) // each), 1)
            row = {key: value[:count] for key, value in row.items()}
        gathered += count * each
        rows.append(row)
    return rows


def _processed(files: Sequence[Path], processor: Any, name: str) -> dict[str, Tensor]:
    pictures = [_read(file) for file in files]
    try:
        row = processor(images=pictures, return_tensors="pt")
        height_and_width = row["pixel_values"].shape[2:]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"compress: {type(processor).__name__} could not make a batch of the images of {name} "
            f"({str(error).splitlines()[0]}). Give batches from Python: "
            "compress(model, calibration=[{'pixel_values': ...}, ...])."
        ) from error
    if len(height_and_width) != 2:
        raise DataError(
            f"compress: {type(processor).__name__} gives pixel_values of shape "
            f"{tuple(row['pixel_values'].shape)}, expected (batch, channels, height, width). Give batches "
            "from "
            "Python: compress(model, calibration=[...])."
        )
    return dict(row)


def _read(file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", extra="compress", purpose="read images") from None
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"compress: {file.name} cannot be read as an image ({error}). Remove the file from the folder."
        ) from error
