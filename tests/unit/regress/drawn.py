"""Samples whose targets a tensor of low rank makes."""

import numpy as np
import torch

from lowdim.algebra.tensors import CP, Tucker


def tensor(shape, rank, seed=0):
    """A random tensor of CP rank `rank`, or of Tucker ranks if these are several."""
    rng = np.random.default_rng(seed)
    draw = lambda *sizes: torch.as_tensor(rng.normal(size=sizes))  # noqa: E731
    if isinstance(rank, int):
        return CP(tuple(draw(n, rank) for n in shape)).dense().numpy()
    return Tucker(draw(*rank), tuple(draw(n, r) for n, r in zip(shape, rank, strict=True))).dense().numpy()


def regression(shape=(6, 5), rank=2, N=150, *, noise=0.1, seed=0):
    """Samples with a mean, targets with an offset of 3, and the coefficients."""
    rng = np.random.default_rng(seed + 100)
    W = tensor(shape, rank, seed)
    X = rng.normal(size=(N, *shape)) + 0.5
    scores = X.reshape(N, -1) @ W.ravel()
    return X, 3 + scores + noise * scores.std() * rng.normal(size=N), W


def classification(shape=(6, 5), rank=1, N=200, *, classes=2, noise=0.3, seed=0):
    """Samples with a mean, labels, and the coefficients (of every class, if there are several)."""
    rng = np.random.default_rng(seed + 200)
    X = rng.normal(size=(N, *shape)) + 0.5
    W = np.stack([tensor(shape, rank, seed + c) for c in range(classes if classes > 2 else 1)])
    scores = X.reshape(N, -1) @ W.reshape(len(W), -1).T
    scores = scores - scores.mean(0) + noise * scores.std() * rng.normal(size=scores.shape)
    return X, (scores[:, 0] > 0).astype(int) if classes == 2 else scores.argmax(1), W


def error(found, true):
    """Relative error of coefficients."""
    return np.linalg.norm(found - true) / np.linalg.norm(true)
