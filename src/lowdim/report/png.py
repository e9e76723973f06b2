"""PNG: images as text that a page carries in itself, without an image library."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

from lowdim.errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["png_uri"]


def png_uri(levels: NDArray) -> str:
    """Return an image as the address of its own contents.

    Parameters
    ----------
    levels : ndarray of uint8, shape (H, W) or (H, W, 3)
        Gray, or red, green and blue.

    Returns
    -------
    str
        ``data:image/png;base64,...``

    Raises
    ------
    ShapeError
        If it is no such array.

    Examples
    --------
    >>> import numpy as np
    >>> png_uri(np.zeros((2, 2), dtype=np.uint8))[:22]
    'data:image/png;base64,'
    """
    color = levels.ndim == 3
    if levels.dtype != "uint8" or levels.ndim not in (2, 3) or (color and levels.shape[2] != 3):
        raise ShapeError(
            f"png_uri: got {levels.dtype} of shape {levels.shape}, expected uint8 of (H, W) or (H, W, 3)."
        )
    height, width = levels.shape[:2]
    lines = levels.reshape(height, -1)
    # Every line stands as its differences from the line above (filter 2): smooth images shrink by half.
    above = lines.copy()
    above[1:] -= lines[:-1]
    raw = b"".join(b"\x02" + line.tobytes() for line in above)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if color else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    image = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
