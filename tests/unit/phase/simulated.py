"""Videos of low multilinear rank, and their magnitudes."""

import torch

from lowdim.algebra.seeds import gaussian
from lowdim.phase.video import Video


def simulated(seed=0, *, shape=(8, 8), frames=20, ranks=(2, 2, 2), samples=48, dtype=torch.float64):
    """Return A (q, m, *shape), magnitudes (q, m) and frames (q, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: gaussian(size, seed=generator, dtype=dtype)  # noqa: E731
    factors = [torch.linalg.qr(draw(n, r)).Q for n, r in zip((*shape, frames), ranks, strict=True)]
    X = Video(draw(*ranks), factors[:-1], factors[-1]).frames()
    A = draw(frames, samples, *shape)
    return A, (A.flatten(2) @ X.flatten(1).unsqueeze(-1)).squeeze(-1).abs(), X
