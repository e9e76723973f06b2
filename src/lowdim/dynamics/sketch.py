"""A few numbers of all parameters, linear in them and reading them once: what oscillation is seen from.

A CountSketch whose hash has structure. The entries of every parameter stand in groups of rows, each row
`width` long; entry (g, i, j) has the random sign ``eps_gi sigma_(g+j)`` and adds to number j::

    (S x)_j = sum_g sigma_(g+j) sum_i eps_gi x_gij

The inner sum is one product with a row of signs, which reads the parameters at the speed of memory; the
outer one works on what that leaves. ``E <Sx, Sy> = <x, y>``, with an error of about ``sqrt(2 / width)`` of
the product of the norms (twice that where all entries change alike), and much less for steps that nearly undo
each other. Every copy of a model is sketched alike, and the sketches of shards add.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from lowdim.algebra.seeds import phases
from lowdim.dynamics.shards import is_sharded, local
from lowdim.errors import DataError

__all__ = ["ParameterSketch"]

ROWS = 64
"""Rows of one group at most: float32 sums of so few lose no digits, and little is left to do."""

GROUPS = 256
"""Groups to aim at: rows of one group share signs, which is felt where all of them change alike."""

ALONE = 32
"""A parameter of fewer rows costs more as a product of its own than copied to the others of its kind."""

PIECE = 1 << 24
"""Entries at a time where the product with the signs has to be written out."""


class ParameterSketch:
    """Sketch the parameters of a model, the same way at every call.

    Parameters
    ----------
    parameters : iterable of Tensor
        They may be moved, replaced in place, and be of any floating dtype;
        half precision is read as float32. Of a sharded parameter (DTensor) the
        local shard is taken: sum the sketches of all processes.
    width : int
        Numbers of one sketch. A model with fewer parameters is sketched exactly.
    seed : int
        Of the signs. Equal seeds give equal sketches in every process; shards need one each.

    Attributes
    ----------
    still : float
        Share of the parameters' norm below which a change is rounding noise:
        1e-8 in float64, 2e-6 where sums are taken in float32.

    Raises
    ------
    DataError
        If there is no floating-point parameter.

    References
    ----------
    .. [1] M. Charikar, K. Chen, M. Farach-Colton, "Finding frequent items in data streams", 2002. Their
       hash is fully random; ours is one pass of a matrix product.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.eye(300))
    >>> sketch = ParameterSketch([weight], width=1024)
    >>> before = sketch()
    >>> weight.data.mul_(-2.0)[0, 0]
    tensor(-2.)
    >>> bool((sketch() == -2 * before).all())
    True
    >>> round(float(before.norm()) / 300**0.5, 1)
    1.0
    """

    def __init__(self, parameters: Iterable[Tensor], *, width: int = 1024, seed: int = 0) -> None:
        self.parameters = [p for p in parameters if p.is_floating_point()]
        if not self.parameters:
            raise DataError(
                "ParameterSketch: there is no floating-point parameter to look at. Pass those that train."
            )
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise DataError(
                f"ParameterSketch: width={width!r} is no number of sums. Use 1024, or 1 and more."
            )
        self.width = width
        self.seed = seed
        double = all(p.dtype == torch.float64 for p in self.parameters)
        self.still = 1e-8 if double else 2e-6
        self._spread = [is_sharded(p) for p in self.parameters]
        self._plans: list[_Plan] | None = None

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Sketch the parameters as they are now.

        Returns
        -------
        Tensor of float64, shape (width,)
            On the device of the first parameter (float32 where it has no float64).
        """
        views = [
            local(p).detach() if d else p.detach() for p, d in zip(self.parameters, self._spread, strict=True)
        ]
        if self._plans is None or any(not plan.fits(views) for plan in self._plans):
            self._plans = self._plan(views)
        first = views[0].device
        total = torch.zeros(self.width, dtype=_widest(first), device=first)
        # Products of lower precision would drown the small changes that are looked for.
        with torch.autocast(first.type, enabled=False):
            for plan in self._plans:
                total += plan.sketch(views).to(total)
        return total

    def _plan(self, views: list[Tensor]) -> list[_Plan]:
        """Group the parameters by device and dtype of their sums."""
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, view in enumerate(views):
            dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
            groups.setdefault((view.device, dtype), []).append(i)
        return [
            _Plan(views, members, device, dtype, self.width, self.seed + 104729 * n)
            for n, ((device, dtype), members) in enumerate(groups.items())
        ]


class _Plan:
    """Signs and room for the sums of all parameters of one device and dtype.

    Every parameter of at least one row is cut into n groups of m rows; what is left over from all of them,
    and the small ones, stand together in `rest`.
    """

    def __init__(
        self,
        views: list[Tensor],
        members: list[int],
        device: torch.device,
        dtype: torch.dtype,
        width: int,
        seed: int,
    ) -> None:
        source = torch.Generator().manual_seed(seed)
        self.members = members
        self.width = width
        self.sizes = [views[i].numel() for i in members]
        together = max(1, min(ROWS, sum(self.sizes) // (width * GROUPS)))
        self.cuts: list[tuple[int, int]] = []
        signs: list[Tensor | None] = []
        for size in self.sizes:
            rows = size // width
            n = max(1, round(rows / together)) if rows >= ALONE else 0
            m = rows // n if n else 0
            self.cuts.append((n, m))
            signs.append(phases((n, 1, m), seed=source, dtype=dtype).to(device) if n else None)
        self.signs = signs
        left = sum(size - n * m * width for size, (n, m) in zip(self.sizes, self.cuts, strict=True))
        n = -(-left // (together * width))
        self.rest = torch.zeros(n, together, width, dtype=dtype, device=device)
        self.rest_signs = phases((n, 1, together), seed=source, dtype=dtype).to(device)
        groups = n + sum(n for n, _ in self.cuts)
        self.sums = torch.empty(groups, 1, width, dtype=dtype, device=device)
        # One row of signs, seen through a window that moves on by one from group to group.
        pool = phases((groups + width,), seed=source, dtype=_widest(device)).to(device)
        self.columns = pool.as_strided((groups, width), (1, 1))
        # Room for the outer sum: memory that is asked for anew at every step takes longer than the sum.
        self.signed = torch.empty(groups, width, dtype=_widest(device), device=device)
        self.ones = torch.ones(groups, dtype=_widest(device), device=device)

    def fits(self, views: list[Tensor]) -> bool:
        """Whether the parameters are still where they were and as many."""
        device = self.sums.device
        return all(
            views[i].numel() == size and views[i].device == device
            for i, size in zip(self.members, self.sizes, strict=True)
        )

    def sketch(self, views: list[Tensor]) -> Tensor:
        """Sum up all parameters of this plan."""
        at, left = 0, []
        dtype = self.sums.dtype
        for i, (n, m), signs in zip(self.members, self.cuts, self.signs, strict=True):
            view = views[i] if views[i].is_contiguous() else views[i].contiguous()
            used = n * m * self.width
            if signs is not None:
                rows = view.as_strided(
                    (n, m, self.width), (m * self.width, self.width, 1), view.storage_offset()
                )
                _signed_sum(signs, rows if rows.dtype == dtype else rows.to(dtype), self.sums[at : at + n])
                at += n
            if used < view.numel():
                flat = view.view(-1)
                left.append(flat[used:] if used else flat)
        if left:
            ends = torch.cat(left).to(dtype)
            self.rest.view(-1)[: len(ends)] = ends
            _signed_sum(self.rest_signs, self.rest, self.sums[at:])
        torch.mul(self.sums[:, 0], self.columns, out=self.signed)
        return self.ones @ self.signed


def _signed_sum(signs: Tensor, rows: Tensor, out: Tensor) -> None:
    """``out_g = sum_i signs_gi rows_gi``, in full precision whatever products are allowed to use."""
    if rows.dtype == torch.float64 or (
        rows.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    ):
        torch.bmm(signs, rows, out=out)
        return
    step = max(1, PIECE // max(1, prod(rows.shape[1:])))
    for a in range(0, len(rows), step):
        b = a + step
        torch.sum(rows[a:b] * signs[a:b].mT, dim=1, keepdim=True, out=out[a:b])


def _widest(device: torch.device) -> torch.dtype:
    """Return the widest floating dtype of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
