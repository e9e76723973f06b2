"""Samples: X as rows on a grid, in memory or read in pieces; the products that all fits are made of."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from sklearn import get_config
from torch import Tensor

from lowdim.regress.grid import Grid
from lowdim.regress.ridge import product

__all__ = ["Samples", "rows_at_once"]


def rows_at_once(columns: int, *, size: int = 8, share: float = 0.25) -> int:
    """Return how many rows of X are held at once when it is read in pieces.

    Parameters
    ----------
    columns : int
        Numbers per row.
    size : int
        Bytes per number.
    share : float
        Of scikit-learn's ``working_memory`` (a setting in MiB).

    Returns
    -------
    int
        At least 1.
    """
    return max(1, int(share * get_config()["working_memory"] * 2**20 / (columns * size)))


class Samples:
    """Samples on a grid, less their weighted mean, and products with them.

    What is computed from X is linear in it, so pieces of rows give what the whole gives.

    Parameters
    ----------
    X : ndarray or Tensor of shape (N, columns)
        float32 and float64 are kept, other numbers become float64. A memory map is read in pieces, every time
        it is needed.
    grid : Grid
    weights : Tensor of shape (N,)
        Non-negative, with sum 1.
    center : bool
        Whether the mean is taken off.
    device : torch.device, optional
        Where to compute; that of a tensor X, else the CPU.

    Examples
    --------
    >>> rows = Samples(np.eye(2), Grid((2,), 2), torch.full((2,), 0.5, dtype=torch.float64))
    >>> rows.mean.tolist(), rows.against(torch.ones(2, 1, dtype=torch.float64)).tolist()
    ([0.5, 0.5], [[0.0], [0.0]])
    """

    def __init__(
        self,
        X: Any,
        grid: Grid,
        weights: Tensor,
        *,
        center: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.grid = grid
        self.weights = weights
        self.count = X.shape[0]
        self._X = X
        self.device = device or (X.device if isinstance(X, Tensor) else torch.device("cpu"))
        single = X.dtype in (torch.float32, np.float32)
        self.dtype = torch.float32 if single else torch.float64
        self.streamed = isinstance(X, np.memmap)
        self.mean = torch.zeros(grid.size, dtype=self.dtype, device=self.device)
        step = rows_at_once(grid.size) if self.streamed else self.count
        self._rows = [slice(i, min(i + step, self.count)) for i in range(0, self.count, step)]
        self._whole: Tensor | None = None
        if not self.streamed:
            self._whole = self._read(slice(0, self.count))
        if center:
            w = weights.to(self.dtype)
            self.mean = torch.stack([w[rows] @ piece for rows, piece in self.pieces()]).sum(0)
            if self._whole is not None:
                self._whole = self._whole - self.mean

    def _read(self, rows: slice) -> Tensor:
        piece = self._X[rows]
        if not isinstance(piece, Tensor):
            kind = np.float32 if self.dtype == torch.float32 else np.float64
            piece = np.ascontiguousarray(piece, dtype=kind)
            piece = torch.as_tensor(piece.copy() if not piece.flags.writeable else piece)
        piece = piece.detach().to(self.device, self.dtype).reshape(len(piece), -1)
        return self.grid.spread(piece)

    def seen(self, weights: Tensor, *, center: bool = True) -> tuple[Samples, Tensor]:
        """Return the samples whose weight is not zero, centered by these weights, and their numbers.

        Parameters
        ----------
        weights : Tensor of shape (N,)
            Non-negative, with sum 1.
        center : bool
            Whether their mean is taken off.

        Returns
        -------
        samples : Samples
        rows : Tensor of int
        """
        rows = weights.nonzero().flatten()
        held = self._X[rows if isinstance(self._X, Tensor) else rows.cpu().numpy()]
        return Samples(held, self.grid, weights[rows], center=center, device=self.device), rows

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and the samples of these rows, (m, size), less the mean."""
        if self._whole is not None:
            yield slice(0, self.count), self._whole
            return
        for rows in self._rows:
            yield rows, self._read(rows) - self.mean

    def against(self, W: Tensor) -> Tensor:
        """Return X W.

        Parameters
        ----------
        W : Tensor of shape (size, C)

        Returns
        -------
        Tensor of shape (N, C)
            In double precision.
        """
        W = W.to(self.dtype)
        return torch.cat([(piece @ W).double() for _, piece in self.pieces()])

    def moment(self, D: Tensor) -> Tensor:
        """Return X^T D.

        Parameters
        ----------
        D : Tensor of shape (N, C)

        Returns
        -------
        Tensor of shape (size, C)
            In double precision.
        """
        D = D.to(self.dtype).mT
        return sum(product(D[:, rows], piece).double() for rows, piece in self.pieces()).mT  # type: ignore

    def contract(self, B: Tensor, *, leading: bool) -> Tensor:
        """Multiply the trailing (or the leading) half of the modes of every sample by matrices.

        All matrices lie side by side in one product, so X is read once for all of them.

        Parameters
        ----------
        B : Tensor of shape (C, places of that half, q)
        leading : bool
            Whether the leading modes vanish; the trailing ones otherwise. `Grid.cut` says where they part.

        Returns
        -------
        Tensor of shape (C, N, q, places of the other half)
            In double precision.

        Notes
        -----
        Products are laid out with the few rows of the matrices on the left: libraries are several times
        faster at (q x n) (n x many) than at (many x n) (n x q).
        """
        C, _, q = B.shape
        left = prod(self.grid.shape[: self.grid.cut])
        right = self.grid.size // left
        rows = B.to(self.dtype).mT.reshape(C * q, -1)
        if leading:
            parts = [product(rows, piece.view(-1, left, right)) for _, piece in self.pieces()]
            found = (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(1, (C, q)).transpose(0, 1)
        else:
            parts = [product(rows, piece.reshape(-1, right).mT) for _, piece in self.pieces()]
            found = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            found = found.view(C, q, -1, left).transpose(1, 2)
        return found.double().contiguous()
