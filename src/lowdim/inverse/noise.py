"""Noise: random numbers of every image by itself, so that its result does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowdim.errors import DataError

__all__ = ["ImageNoise", "Seeds"]

Seeds = int | Sequence[int] | None

_REPEAT = 2654435761
"""Distance between the seeds of repeated runs on one image: odd, so that it reaches all of the 32 bits that
torch's generator takes, and further than anybody's seeds are apart."""


MEASUREMENT = -1
"""The stream of noise in measurements: a solver with the same seed must not know it."""


class ImageNoise:
    """Standard normal numbers from one generator per image.

    Parameters
    ----------
    seed : int, sequence of int, or None
        One seed per image; of a number s, image b gets s + b; None draws a number.
    batch : int
        Number of images.
    repeat : int
        Which of several independent streams of the same seeds: those of the runs on an image count from 0,
        that of the noise in its measurement is `MEASUREMENT`. One seed for both is then no mistake.

    Raises
    ------
    DataError
        If seeds are no integers or not as many as images.

    Examples
    --------
    >>> one = ImageNoise(3, batch=1)((1, 2, 2))
    >>> bool((ImageNoise([0, 3], batch=2)((2, 2, 2))[1] == one[0]).all())
    True
    """

    def __init__(self, seed: Seeds, *, batch: int, repeat: int = 0) -> None:
        if seed is None:
            seed = int(torch.randint(2**31, (), dtype=torch.int64))
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        seeds = [seed + b for b in range(batch)] if whole else seed  # type: ignore[operator]
        if (
            not isinstance(seeds, Sequence)
            or not all(isinstance(s, int) for s in seeds)
            or isinstance(seed, str)
        ):
            raise DataError(f"seed={seed!r} is no seed. Give a whole number, one per image, or None.")
        if len(seeds) != batch:
            raise DataError(
                f"seed: {len(seeds)} seeds for {batch} images. Give one per image, or one number."
            )
        self.seeds = list(seeds)
        self._generators = [torch.Generator().manual_seed((s + repeat * _REPEAT) % 2**32) for s in seeds]

    def __call__(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw numbers of `shape` (batch, ...), real or complex by `dtype`, on the CPU; move to `device`."""
        drawn = [torch.randn(tuple(shape[1:]), generator=g, dtype=dtype) for g in self._generators]
        return torch.stack(drawn).to(device or "cpu")

    def like(self, x: Tensor) -> Tensor:
        """Draw numbers of the shape, type and device of `x`."""
        return self(x.shape, dtype=x.dtype, device=x.device)
