"""Tasks: regression prompts whose functions have their weights in one or several subspaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.algebra.subspace import Subspace
from lowdim.errors import DataError, RankError
from lowdim.incontext.bases import drawn_bases, given_bases, span_of
from lowdim.incontext.door import (
    check_angles,
    check_count,
    check_covariance,
    check_noise,
    check_room,
    check_weights,
)
from lowdim.incontext.families import Family, make_family

__all__ = ["Prompt", "SubspaceTasks", "Toward"]

Toward = Literal["inside", "outside", "anywhere"]
"""Where a turned subspace goes: into the span of the training subspaces, out of it, or in any direction."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of regression problems: examples in the context, and a query.

    Parameters
    ----------
    X : Tensor, shape (batch, n, d)
        Inputs of the context.
    y : Tensor, shape (batch, n)
        Their labels, with noise.
    xq : Tensor, shape (batch, d)
        Inputs to predict at.
    yq : Tensor, shape (batch,)
        Their labels, without noise.
    clean : Tensor, shape (batch, n)
        `y` without noise.
    which : Tensor of int64, shape (batch,)
        Number of the subspace that each problem is from.

    Examples
    --------
    >>> prompt = SubspaceTasks(4, r=1, seed=0).sample(8, n=10, seed=0)
    >>> prompt.X.shape, prompt.y.shape, prompt.n
    (torch.Size([8, 10, 4]), torch.Size([8, 10]), 10)
    """

    X: Tensor
    y: Tensor
    xq: Tensor
    yq: Tensor
    clean: Tensor
    which: Tensor

    @property
    def n(self) -> int:
        """Number of examples in the context."""
        return self.y.shape[-1]

    def first(self, n: int) -> Prompt:
        """Return the same problems with the first `n` examples only.

        Raises
        ------
        DataError
            If there are not as many.
        """
        if check_count("n", n, where="Prompt.first") > self.n:
            raise DataError(f"Prompt.first: n={n} exceeds the {self.n} examples of the prompt. Lower it.")
        return Prompt(self.X[:, :n], self.y[:, :n], self.xq, self.yq, self.clean[:, :n], self.which)


class SubspaceTasks:
    """Regression tasks with weights in a subspace, or in one of several.

    Of every problem a subspace U_j is drawn with probability p_j, then a function with weights in it; for
    linear functions that is y_i = b.x_i + noise e_i with b = U_j z, x_i ~ N(0, I) and z, e_i standard normal.

    Parameters
    ----------
    d : int
        Dimension of inputs.
    r : int, optional
        Dimension of each subspace; known from `subspaces` where that holds bases.
    subspaces : int or Tensor of shape (k, d, r) or (d, r)
        Orthonormal bases, or how many are drawn: floor(d / r) mutually orthogonal ones at a time, so that
        they are all orthogonal as long as they fit. With one seed, fewer subspaces are the first of more.
    weights : sequence of float, optional
        Probabilities p_j; equal by default.
    noise : float
        Standard deviation sigma of the noise on labels.
    family : Family or str
        "linear", "relu", "single-index", "fourier", or an instance of their classes.
    inputs : Tensor of shape (d, d), optional
        Covariance of x in place of the identity; for linear functions only.
    orthonormalize : bool
        Replace bases that are not orthonormal by orthonormal bases of their spans.
    seed : int, torch.Generator or None
        Of subspaces that are drawn.
    dtype : torch.dtype
        Of drawn bases and of the prompts.

    Raises
    ------
    DataError
        If bases are not orthonormal, weights no probabilities, noise negative, or `inputs` no covariance.
    ShapeError, RankError
        If shapes or dimensions do not fit.

    References
    ----------
    .. [1] S. M. Kwon, A. S. Xu, C. Yaras, L. Balzano, Q. Qu, "Out-of-distribution generalization of
       in-context learning: a low-dimensional subspace perspective", AISTATS 2026 (arXiv 2505.14808).
    .. [2] S. Garg, D. Tsipras, P. Liang, G. Valiant, "What can transformers learn in-context? A case study of
       simple function classes", NeurIPS 2022.

    Examples
    --------
    >>> tasks = SubspaceTasks(20, r=5, seed=0)
    >>> turned = tasks.rotated(30.0)
    >>> Subspace(tasks.bases[0]).angles(Subspace(turned.bases[0])).rad2deg().round()
    tensor([30., 30., 30., 30., 30.], dtype=torch.float64)
    """

    def __init__(
        self,
        d: int,
        *,
        r: int | None = None,
        subspaces: int | Tensor = 1,
        weights: Any = None,
        noise: float = 0.0,
        family: str | Family = "linear",
        inputs: Tensor | None = None,
        orthonormalize: bool = False,
        seed: Seed = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        where = "SubspaceTasks"
        self.d = check_count("d", d, where=where)
        if isinstance(subspaces, Tensor):
            self.bases = given_bases(subspaces, d, r, orthonormalize=orthonormalize)
        else:
            self.bases = drawn_bases(d, r, subspaces, seed=seed, dtype=dtype)
        self.r = self.bases.shape[-1]
        self.weights = check_weights(weights, len(self.bases), where=where)
        self.noise = check_noise(noise, where=where)
        self.family = make_family(family)
        self.inputs: Tensor | None = None
        self.root: Tensor | None = None
        if inputs is not None:
            if self.family.name != "linear":
                raise DataError(
                    f"{where}: inputs (their covariance) is for linear functions only: labels of "
                    f"{self.family.name!r} have unit variance for standard normal inputs. Leave it out."
                )
            self.inputs = check_covariance("inputs", inputs, where=where, d=d).to(self.bases)
            values, vectors = torch.linalg.eigh(self.inputs.double())
            root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
            self.root = root.to(self.bases)

    def __repr__(self) -> str:
        return (
            f"SubspaceTasks({self.d}, r={self.r}, subspaces={len(self.bases)}, noise={self.noise:g}, "
            f"family={self.family.name!r})"
        )

    @property
    def k(self) -> int:
        """Number of subspaces."""
        return len(self.bases)

    @property
    def covariance(self) -> Tensor:
        """Second moment of linear task vectors, sum_j p_j U_j U_j^T, shape (d, d)."""
        weights = self.weights.to(self.bases)
        return torch.einsum("k,kdr,ker->de", weights, self.bases, self.bases)

    @property
    def span(self) -> Subspace:
        """The subspace that all subspaces together span."""
        return span_of(self.bases)

    @property
    def variance(self) -> float:
        """Variance of a label without noise: the risk of always predicting 0."""
        if self.inputs is None:
            return self.family.variance(self.r)
        return float((self.covariance * self.inputs).sum())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SubspaceTasks:
        """Return the same tasks on another device, or in another precision.

        Parameters
        ----------
        device : torch.device or str, optional
        dtype : torch.dtype, optional

        Returns
        -------
        SubspaceTasks
        """
        other = SubspaceTasks.__new__(SubspaceTasks)
        other.__dict__.update(self.__dict__)
        for name in ("bases", "inputs", "root"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else value.to(device=device, dtype=dtype))
        return other

    def on(self, bases: Tensor, *, weights: Any = None) -> SubspaceTasks:
        """Return tasks of the same family, noise and inputs on other subspaces.

        Parameters
        ----------
        bases : Tensor of shape (k, d, r) or (d, r)
        weights : sequence of float, optional

        Returns
        -------
        SubspaceTasks
        """
        return SubspaceTasks(
            self.d,
            subspaces=bases.to(self.bases),
            weights=weights,
            noise=self.noise,
            family=self.family,
            inputs=self.inputs,
        )

    def rotated(
        self, angle_deg: Any, *, toward: Toward | Tensor | None = None, seed: Seed = 0
    ) -> SubspaceTasks:
        """Return tasks on the first subspace, turned: U cos t + V sin t.

        Parameters
        ----------
        angle_deg : float or sequence of r floats
            Angle t in degrees, in [0, 90]; or one for every column of the basis.
        toward : "inside", "outside", "anywhere" or Tensor of shape (d, r), optional
            Where V lies: in the span of all subspaces, orthogonal to it, anywhere; or V itself, orthonormal
            and orthogonal to U. By default "inside" of several subspaces (toward the second one), "outside"
            of one.
        seed : int, torch.Generator or None
            Of a V that is drawn.

        Returns
        -------
        SubspaceTasks
            On one subspace.

        Raises
        ------
        RankError
            If there is no room: 2 r > d, or no r directions inside or outside.
        DataError
            If an angle is outside of [0, 90] degrees, or V not orthonormal or not orthogonal to U.
        """
        where = "SubspaceTasks.rotated"
        check_room(self.d, self.r, where=where)
        t = check_angles(angle_deg, where=where, columns=self.r).to(self.bases).deg2rad()
        V = self.direction(toward, seed=seed)
        return self.on(self.bases[0] * torch.cos(t) + V * torch.sin(t))

    def direction(self, toward: Toward | Tensor | None = None, *, seed: Seed = 0) -> Tensor:
        """Return the V of `rotated`, shape (d, r).

        Parameters
        ----------
        toward, seed
            See `rotated`.

        Returns
        -------
        Tensor

        Raises
        ------
        RankError, DataError, ShapeError
            See `rotated`.
        """
        where, U = "SubspaceTasks.rotated", self.bases[0]
        check_room(self.d, self.r, where=where)
        if isinstance(toward, Tensor):
            V = given_bases(toward, self.d, self.r, orthonormalize=False)[0].to(U)
            if float((U.mT @ V).abs().max()) > 1e-3:
                raise DataError(
                    f"{where}: toward must be orthogonal to the subspace that is turned. Take "
                    "V = torch.linalg.qr(V - U @ U.mT @ V).Q."
                )
            return V
        toward = toward or ("inside" if self.k > 1 else "outside")
        if toward == "inside":
            return self._inside()
        if toward not in ("outside", "anywhere"):
            raise DataError(
                f"{where}: toward={toward!r} is unknown. Use 'inside', 'outside', 'anywhere' or a basis."
            )
        # In double precision, so that tasks of any precision turn the same way.
        away = span_of(self.bases.double() if toward == "outside" else self.bases[:1].double())
        if away.r + self.r > self.d:
            raise RankError(
                f"{where}: the subspaces span {away.r} of {self.d} dimensions; outside of them there is no "
                f"room for another {self.r}. Use toward='anywhere', or raise d."
            )
        drawn = gaussian((self.d, self.r), seed=seed, dtype=torch.float64, device=U.device)
        for _ in range(2):  # twice is enough for orthogonality to rounding
            drawn = torch.linalg.qr(drawn - away.project(drawn.mT).mT).Q
        return drawn.to(U.dtype)

    def _inside(self) -> Tensor:
        """Return r directions of the span orthogonal to the first subspace; of the second, if it has them."""
        double = self.bases.double()
        U = double[0]
        for others in (double[1:2], double[1:]):
            beside = span_of(others - U @ (U.mT @ others)).basis
            if beside.shape[-1] >= self.r:
                return beside[:, : self.r].to(self.bases.dtype)
        raise RankError(
            f"SubspaceTasks.rotated: the {self.k} training subspace(s) span no {self.r} directions beside "
            "the first one. Use toward='outside', or more subspaces."
        )

    def draw_bases(self, batch: int, *, seed: Seed = None) -> tuple[Tensor, Tensor]:
        """Draw the subspace of every problem of a batch.

        Parameters
        ----------
        batch : int
        seed : int, torch.Generator or None

        Returns
        -------
        bases : Tensor, shape (batch, d, r)
        which : Tensor of int64, shape (batch,)
        """
        source = generator(seed)
        if self.k == 1:
            which = torch.zeros(batch, dtype=torch.int64, device=self.bases.device)
            return self.bases.expand(batch, -1, -1), which
        where = source.device if source is not None else "cpu"
        which = torch.multinomial(self.weights.to(where), batch, replacement=True, generator=source).to(
            self.bases.device
        )
        return self.bases[which], which

    def sample(self, batch: int, *, n: int, seed: Seed = None) -> Prompt:
        """Draw fresh problems.

        Parameters
        ----------
        batch : int
            Number of problems.
        n : int
            Examples in the context of each.
        seed : int, torch.Generator or None
            An int gives the same problems on every device.

        Returns
        -------
        Prompt

        Raises
        ------
        DataError
            If `batch` or `n` is below 1.
        """
        check_count("batch", batch, where="SubspaceTasks.sample")
        check_count("n", n, where="SubspaceTasks.sample")
        source = generator(seed)
        bases, which = self.draw_bases(batch, seed=source)
        dtype, device = self.bases.dtype, self.bases.device
        label = self.family.draw(bases, seed=source)
        x = gaussian((batch, n + 1, self.d), seed=source, dtype=dtype, device=device)
        if self.root is not None:
            x = x @ self.root
        labels = label(x)
        clean = labels[:, :-1]
        y = clean
        if self.noise:
            y = y + self.noise * gaussian((batch, n), seed=source, dtype=dtype, device=device)
        return Prompt(x[:, :-1], y, x[:, -1], labels[:, -1], clean, which)
