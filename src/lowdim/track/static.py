"""The subspace that does not move: principal components of frames with gaps, and what can start from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from lowdim.errors import DataError
from lowdim.store import read_model, write_model
from lowdim.threads import few_threads
from lowdim.track.curve import Curve, polar
from lowdim.track.observations import Masked, Observations
from lowdim.track.panel import SMALL, check_frames, check_rank, tensor_of

__all__ = ["StaticSubspace", "alternate", "principal", "start_curve"]


def _regularized(gram: Tensor, ridge: float) -> Tensor:
    """Add a share of the mean diagonal to Gram matrices (..., k, k)."""
    k = gram.shape[-1]
    size = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1).clamp_min(1e-300)
    eye = torch.eye(k, dtype=gram.dtype, device=gram.device)
    return gram + (ridge * size)[..., None, None] * eye


def principal(data: Observations, rank: int) -> Tensor:
    """Return the leading left singular vectors of the (zero-filled) frames, shape (d, rank)."""
    frames = data.complete(torch.zeros_like(_zero(data)))[0]
    # The smaller of the two Gram matrices has the same information.
    if frames.shape[0] < frames.shape[1] and frames.shape[0] >= rank:
        return torch.linalg.svd(frames.mT, full_matrices=False)[0][:, :rank]
    _, vectors = torch.linalg.eigh(frames.mT @ frames.conj())
    return vectors.flip(1)[:, :rank]


def _zero(data: Observations) -> Tensor:
    if isinstance(data, Masked):
        return data.y
    return data.y.new_zeros(len(data.y), data.dimension)  # type: ignore[attr-defined]


def alternate(
    data: Observations, rank: int, *, ridge: float = 1e-6, steps: int = 200, tol: float = 1e-7
) -> tuple[Tensor, Tensor, float]:
    """Fit one subspace to all frames: ``min over U, g of sum_i ||y_i - A_i U g_i||^2``.

    With gaps, both sides have closed forms in turn (alternating least
    squares). Through linear maps the frames are completed instead.

    Parameters
    ----------
    data : Observations
    rank : int
        k.
    ridge : float
        Share of the mean diagonal that is added to every system of equations.
    steps : int
        Largest number of iterations.
    tol : float
        Stop when the loss falls by less than this fraction.

    Returns
    -------
    U : Tensor of shape (d, k)
        Orthonormal columns.
    g : Tensor of shape (T, k)
    loss : float
    """
    U = principal(data, rank)
    last = float("inf")
    for _ in range(steps):
        gram, right = data.normal(U)
        g = torch.linalg.solve(_regularized(gram, ridge), right[..., None]).squeeze(-1)
        frames, loss_ = data.complete(g @ U.mT)
        loss = float(loss_)
        if loss >= last * (1 - tol) or (isinstance(data, Masked) and data.weight is None and loss <= last):
            break
        last = loss
        if isinstance(data, Masked) and data.weight is not None:
            pairs = (g[:, :, None] * g.conj()[:, None, :]).reshape(len(g), -1)
            rows = (data.weight.mT.to(g.dtype) @ pairs).reshape(-1, rank, rank)
            # Row by row: u (sum g g^H) = sum y g^H.
            U = torch.linalg.solve(_regularized(rows, ridge).mT, (data.y.mT @ g.conj())[..., None]).squeeze(
                -1
            )
            U = torch.linalg.qr(U)[0]
        else:
            U = polar(frames.mT @ g.conj())
    gram, right = data.normal(U)
    g = torch.linalg.solve(_regularized(gram, ridge), right[..., None]).squeeze(-1)
    return U, g, float(data.complete(g @ U.mT)[1])


def start_curve(
    data: Observations,
    t: Tensor,
    rank: int,
    *,
    kind: str,
    source: torch.Generator,
    ridge: float = 1e-6,
) -> Curve:
    """Return a curve to start from.

    Parameters
    ----------
    data : Observations
    t : Tensor of shape (T,)
        Times in [0, 1].
    rank : int
    kind : {"static", "svd", "random"}
        "static": the best subspace at rest, set in motion by what it leaves: its residual, regressed on
        (t - 1/2) g, says in which directions it should turn, and how fast. "svd": the leading singular
        vectors of the zero-filled frames, turned at random. "random".
    source : torch.Generator
        For everything random.
    ridge : float
        Of the fit at rest.

    Returns
    -------
    Curve
    """
    d, dtype = _zero(data).shape[1], data.y.dtype
    real = data.y.real.dtype
    device = data.y.device

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=kind).to(device)

    if kind == "static":
        U, g, _ = alternate(data, rank, ridge=max(ridge, 1e-3))
        frames, _ = data.complete(g @ U.mT)
        residual, drift = frames - g @ U.mT, (t - 0.5)[:, None] * g
        gram = drift.mT.conj() @ drift
        slope = torch.linalg.solve(_regularized(gram, 1e-2).mT, (residual.mT @ drift.conj()).mT).mT
        slope = slope - U @ (U.mH @ slope)
        W, speed, V = torch.linalg.svd(slope, full_matrices=False)
        # Frames with gaps show a part of the drift only.
        share = data.share().mean().clamp(0.05, 1.0)
        theta = (speed / share).clamp(0.02, 1.2)
        # Where nothing drifts any direction will do; always the same ones, so that this start is not random.
        any_ = torch.randn(d, rank, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)
        W = polar(_apart(W + 1e-6 * any_, U))
        center = U @ V.mH
        # U(1/2) is the fit at rest: turn back by half of the way.
        half = theta / 2
        H = center * half.cos() - W * half.sin()
        Y = center * half.sin() + W * half.cos()
        return Curve(polar(torch.cat([H, Y], dim=1)), theta)
    theta = torch.rand(rank, generator=source, dtype=real).to(device) * torch.pi / 2
    if kind == "svd":
        rotation = torch.linalg.qr(draw(2 * rank, 2 * rank))[0]
        return Curve(principal(data, 2 * rank) @ rotation, theta)
    return Curve(torch.linalg.qr(draw(d, 2 * rank))[0], theta)


def _apart(W: Tensor, U: Tensor) -> Tensor:
    return W - U @ (U.mH @ W)


class StaticSubspace(TransformerMixin, BaseEstimator):
    """One subspace for all frames: principal components (without centering) of frames with gaps.

    Takes times where the moving models do, and does not look at them.

    Parameters
    ----------
    n_components : int
        Dimension k.
    ridge : float
        Share of the mean diagonal that is added to the equations.

    Attributes
    ----------
    U_ : ndarray of shape (d, k)
        Orthonormal columns.
    coefficients_ : ndarray of shape (T, k)
        Of the frames that were fitted.
    loss_ : float
        Sum of squared errors on what was observed.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.outer([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0])
    >>> X[1, 2] = np.nan
    >>> StaticSubspace(1, ridge=1e-9).fit(X).impute(X)[1].round(3)
    array([2., 0., 4.])
    """

    def __init__(self, n_components: int = 1, *, ridge: float = 1e-6) -> None:
        self.n_components = n_components
        self.ridge = ridge

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None, *, t: Any = None, mask: Any = None) -> StaticSubspace:
        """Fit the subspace.

        Parameters
        ----------
        X : array-like of shape (T, d)
            Frames, NaN where nothing is seen; real or complex.
        y, t : ignored
        mask : array-like of bool of shape (T, d), optional
            Whether an entry is seen.

        Returns
        -------
        StaticSubspace
            Itself.

        Raises
        ------
        ShapeError, RankError, DataError
            If sizes or numbers cannot be used.
        """
        where = "StaticSubspace"
        frames, seen = check_frames(X, mask, where=where, least=2)
        validate_data(self, X, reset=True, skip_check_array=True)
        check_rank(
            self.n_components, largest=min(frames.shape), where=where, why=f"the frames are {frames.shape}"
        )
        if not self.ridge >= 0:
            raise DataError(f"{where}: ridge={self.ridge!r} must not be negative. The default is 1e-6.")
        with few_threads(frames.size, small=SMALL):
            U, g, self.loss_ = alternate(_masked(frames, seen), self.n_components, ridge=self.ridge)
        # In the order in memory that `load` gives: the same numbers to the last digit.
        self.U_, self.coefficients_ = np.ascontiguousarray(U.numpy()), np.ascontiguousarray(g.numpy())
        return self

    def basis(self, t: Any = None) -> np.ndarray:
        """Return the basis, shape (..., d, k), the same at all times; by default for every fitted frame."""
        check_is_fitted(self, "U_")
        shape = (len(self.coefficients_),) if t is None else np.shape(t)
        return np.broadcast_to(self.U_, (*shape, *self.U_.shape))

    def transform(self, X: Any, *, t: Any = None, mask: Any = None) -> np.ndarray:
        """Return the coefficients (T, k) of frames X (T, d); NaN or mask for gaps, t is ignored."""
        return self._explain(X, mask)[0].numpy()

    def impute(self, X: Any, *, t: Any = None, mask: Any = None) -> np.ndarray:
        """Return frames X (T, d) with their gaps (NaN, or mask) filled in; t is ignored."""
        g, data = self._explain(X, mask)
        return data.complete(g @ torch.from_numpy(self.U_).mT)[0].numpy()

    def _explain(self, X: Any, mask: Any) -> tuple[Tensor, Masked]:
        check_is_fitted(self, "U_")
        frames, seen = check_frames(X, mask, where="StaticSubspace")
        validate_data(self, X, reset=False, skip_check_array=True)
        U = torch.from_numpy(self.U_)
        data = _masked(frames.astype(np.result_type(frames, self.U_), copy=False), seen)
        gram, right = data.normal(U.to(data.y.dtype))
        return torch.linalg.solve(_regularized(gram, self.ridge), right[..., None]).squeeze(-1), data

    def save(self, directory: str | Path) -> None:
        """Write the model into a folder (a directory, made if need be)."""
        check_is_fitted(self, "U_")
        write_model(self, directory, {"U": self.U_, "coefficients": self.coefficients_}, {"loss": self.loss_})

    @classmethod
    def load(cls, directory: str | Path) -> StaticSubspace:
        """Read a model from a directory that `save` has written; RunError if it holds none."""
        model, arrays, facts = read_model(cls, directory)
        model.U_, model.coefficients_ = arrays["U"], arrays["coefficients"]
        model.loss_ = facts["loss"]
        model.n_features_in_ = len(model.U_)
        return model


def _masked(frames: np.ndarray, seen: np.ndarray | None) -> Masked:
    return Masked(tensor_of(frames, "cpu"), None if seen is None else tensor_of(seen, "cpu"))
