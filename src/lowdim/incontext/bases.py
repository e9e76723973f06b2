"""Bases: orthonormal bases of several subspaces, given or drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, generator
from lowdim.algebra.subspace import Subspace
from lowdim.errors import DataError, RankError, ShapeError
from lowdim.incontext.door import check_count

__all__ = ["drawn_bases", "given_bases", "span_of"]

_ORTHONORMAL = 1e-6
"""How far products of columns of a basis may be from those of orthonormal ones; rounding allows for more."""


def span_of(bases: Tensor) -> Subspace:
    """Return what bases (k, d, r) span together; directions that rounding may make do not count."""
    columns = bases.movedim(0, 1).flatten(1)
    sizes = torch.linalg.svdvals(columns) if columns.numel() else columns.new_zeros(0)
    return Subspace.span(columns, rank=int((sizes > 1e-5).sum()))


def given_bases(bases: Tensor, d: int, r: int | None, *, orthonormalize: bool) -> Tensor:
    """Return bases (k, d, r) that were checked."""
    where = "SubspaceTasks"
    bases = bases.unsqueeze(0) if bases.ndim == 2 else bases
    if bases.ndim != 3 or bases.shape[1] != d or r not in (None, bases.shape[2]) or not bases.numel():
        wanted = f"(k, {d}, {'r' if r is None else r})"
        raise ShapeError(f"{where}: subspaces have shape {tuple(bases.shape)}, expected {wanted}.")
    if not bases.is_floating_point() or not bool(torch.isfinite(bases).all()):
        raise DataError(f"{where}: subspaces must be real, finite numbers.")
    if bases.shape[2] > d:
        raise RankError(f"{where}: r={bases.shape[2]} exceeds d={d}.")
    gap = bases.mT @ bases - torch.eye(bases.shape[2], dtype=bases.dtype, device=bases.device)
    rounding = 8 * torch.finfo(bases.dtype).eps * d**0.5
    if float(gap.abs().max()) <= max(_ORTHONORMAL, rounding):
        return bases
    if not orthonormalize:
        raise DataError(
            f"{where}: the columns of subspaces are not orthonormal (off by {float(gap.abs().max()):.2g}). "
            "Add orthonormalize=True to take orthonormal bases of their spans."
        )
    found = [Subspace.span(basis).basis for basis in bases]
    if any(basis.shape[1] < bases.shape[2] for basis in found):
        raise RankError(
            f"{where}: the columns of a basis are linearly dependent. Give {bases.shape[2]} independent ones."
        )
    return torch.stack(found)


def drawn_bases(d: int, r: int | None, count: int, *, seed: Seed, dtype: torch.dtype) -> Tensor:
    """Draw subspaces, mutually orthogonal ones as long as they fit."""
    where = "SubspaceTasks"
    check_count("subspaces", count, where=where)
    if r is None:
        raise DataError(f"{where}: give r, the dimension of the subspaces, or bases as subspaces=...")
    if check_count("r", r, where=where) > d:
        raise RankError(
            f"{where}: subspaces of r={r} dimensions do not fit into d={d}. Lower r to at most {d}."
        )
    source, fit = generator(seed), d // r
    found: list[Tensor] = []
    while len(found) < count:
        Q = Subspace.random(d, fit * r, seed=source, dtype=dtype).basis
        found += list(Q.reshape(d, fit, r).movedim(1, 0))
    return torch.stack(found[:count])
