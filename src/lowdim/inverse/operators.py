"""Operators: how an image becomes a measurement, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.operator import Operator
from lowdim.errors import DataError, ShapeError
from lowdim.inverse.noise import MEASUREMENT, ImageNoise, Seeds

__all__ = ["ForwardOperator", "adjoint_error", "as_operator"]


class ForwardOperator:
    """A differentiable map from images (B, C, H, W) to measurements (B, ...).

    A kind of operator implements `A`; a linear one may add `A_adjoint` (else it is found by pulling back
    through A) and a closed form of `prox_l2`, which it announces by ``closed_form = True``.

    Parameters
    ----------
    linear : bool
        Whether A is.
    image_shape : tuple of int, optional
        (C, H, W), where only one is possible.
    value_range : (float, float)
        Of the images that A takes.
    noise_sigma : float, optional
        Standard deviation of the noise in its measurements, where it is known.

    Raises
    ------
    DataError
        If the range is empty.

    Examples
    --------
    >>> class Mirror(ForwardOperator):
    ...     def A(self, x):
    ...         return x.flip(-1)
    >>> Mirror(image_shape=(1, 1, 3)).A_adjoint(torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)).flatten()
    tensor([3., 2., 1.])
    """

    #: Whether `prox_l2` needs no iteration.
    closed_form: bool = False

    def __init__(
        self,
        *,
        linear: bool = True,
        image_shape: Sequence[int] | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        noise_sigma: float | None = None,
    ) -> None:
        low, high = value_range
        if not low < high:
            raise DataError(f"{type(self).__name__}: value_range={value_range} must be (low, high).")
        self.linear = linear
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.value_range = (float(low), float(high))
        self.noise_sigma = None if noise_sigma is None else float(noise_sigma)

    def A(self, x: Tensor) -> Tensor:
        """Return the measurements of images `x` without noise."""
        raise NotImplementedError(f"{type(self).__name__} does not implement A.")

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return the adjoint of A at measurements `y` (B, ...)."""
        if self.image_shape is None:
            raise ShapeError(
                f"{type(self).__name__}: the size of its images is unknown. Give image_shape=(C, H, W) or "
                "x_init."
            )
        dtype = torch.empty((), dtype=y.dtype).real.dtype if y.is_complex() else y.dtype
        zero = torch.zeros(len(y), *self.image_shape, dtype=dtype, device=y.device)
        return torch.func.vjp(self.A, zero)[1](y)[0]

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        """Return ``argmin_x gamma ||A x - y||^2 + ||x - z||^2`` for `gamma` > 0 at images `z`, data `y`."""
        raise NotImplementedError(f"{type(self).__name__} has no closed form. Use lowdim.inverse.prox.")

    def count(self, y: Tensor) -> Tensor:
        """Return how many numbers of every item of `y` were measured, shape (B,)."""
        return torch.full((len(y),), float(prod(y.shape[1:])), device=y.device)

    def pack(self, y: Any) -> Tensor:
        """Return measurements `y` of the user as A returns them."""
        return torch.as_tensor(y)

    def measure(self, x: Tensor, *, sigma: float | None = None, seed: Seeds = None) -> Tensor:
        """Measure images with noise.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)
            Images in the operator's range of values.
        sigma : float, optional
            Standard deviation of the noise; the operator's, or none, otherwise.
        seed : int, sequence of int, or None
            See `ImageNoise`.

        Returns
        -------
        Tensor, shape (B, ...)
        """
        y = self.A(x)
        sigma = (self.noise_sigma or 0.0) if sigma is None else sigma
        if sigma == 0:
            return y
        noisy = y + sigma * ImageNoise(seed, batch=len(y), repeat=MEASUREMENT).like(y)
        # What is not measured has no noise either: it is zero in the data.
        seen = self._seen(y)
        return noisy if seen is None else torch.where(seen, noisy, y)

    def _seen(self, y: Tensor) -> Tensor | None:
        """Which entries of y were measured, where some are only filled in."""
        return None


class _Given(ForwardOperator):
    """An operator around a user's object or function."""

    def __init__(self, thing: Any, forward: Callable[..., Any], adjoint: Any, **options: Any) -> None:
        super().__init__(**options)
        self.thing, self._forward, self._backward = thing, forward, adjoint
        self._prox = _closed_prox(thing) if self.linear else None
        self.closed_form = self._prox is not None
        self._parts: list[torch.Size] | None = None

    def A(self, x: Tensor) -> Tensor:
        return self.pack(self._forward(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        if self._backward is None:
            return super().A_adjoint(y)
        image = self._backward(self._unpack(y))
        return image.real if image.is_complex() else image

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float) -> Tensor:
        if self._prox is None:
            return super().prox_l2(z, y, gamma)
        return self._prox(z, y, gamma)

    def pack(self, y: Any) -> Tensor:
        # Stacked physics of deepinv measure lists of tensors.
        parts = getattr(y, "x", None)
        if isinstance(parts, list):
            self._parts = [part.shape[1:] for part in parts]
            self._list = type(y)
            return torch.cat([part.flatten(1) for part in parts], 1)
        return torch.as_tensor(y)

    def _unpack(self, y: Tensor) -> Any:
        if self._parts is None:
            return y
        pieces = y.split([prod(shape) for shape in self._parts], 1)
        return self._list([p.reshape(-1, *shape) for p, shape in zip(pieces, self._parts, strict=True)])

    def _seen(self, y: Tensor) -> Tensor | None:
        mask = getattr(self.thing, "mask", None)
        if not isinstance(mask, Tensor) or mask.ndim > y.ndim:
            return None
        try:
            return (mask != 0).expand_as(y)
        except RuntimeError:  # singular values in another domain
            return None

    def count(self, y: Tensor) -> Tensor:
        seen = self._seen(y)
        return super().count(y) if seen is None else seen.flatten(1).sum(1).to(torch.float32)


def _closed_prox(thing: Any) -> Any:
    """Return the object's prox, of deepinv's physics only where it is a closed form and no iteration."""
    if not callable(getattr(thing, "prox_l2", None)):
        return None
    owner = next((kind for kind in type(thing).__mro__ if "prox_l2" in vars(kind)), type(thing))
    closed = owner.__module__.split(".")[0] != "deepinv" or owner.__name__ == "DecomposablePhysics"
    if type(thing).__name__ == "Downsampling":  # of circular blurs
        closed = getattr(thing, "padding", None) == "circular" and getattr(thing, "filter", None) is not None
    return thing.prox_l2 if closed else None


def as_operator(
    thing: Any,
    *,
    linear: bool | None = None,
    adjoint: Callable[[Tensor], Tensor] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    noise_sigma: float | None = None,
) -> ForwardOperator:
    """Take a forward operator in any accepted form.

    Parameters
    ----------
    thing : ForwardOperator, object with A(x), Operator of lowdim, or function
        A physics of deepinv is such an object: its `A_adjoint`, `prox_l2` (where it is a closed form),
        noise model and mask are used. An Operator acts on flat images and needs `image_shape`.
    linear : bool, optional
        Whether it is; otherwise an object with `A_adjoint` and an Operator are, a function is not.
    adjoint : callable, optional
        The adjoint of a linear function; found by pulling back through it otherwise.
    image_shape : sequence of int, optional
        (C, H, W) of one image, where neither the operator nor the prior tells.
    value_range : (float, float), optional
        Of the images it takes. A physics of deepinv takes [0, 1], all others [-1, 1].
    noise_sigma : float, optional
        Standard deviation of the noise in measurements, in their units.

    Returns
    -------
    ForwardOperator

    Raises
    ------
    DataError
        If it is none of these.

    Examples
    --------
    >>> half = as_operator(lambda x: x[..., ::2], linear=True, image_shape=(1, 4, 4))
    >>> half.A(torch.ones(1, 1, 4, 4)).shape, half.A_adjoint(torch.ones(1, 1, 4, 2))[0, 0, 0]
    (torch.Size([1, 1, 4, 2]), tensor([1., 0., 1., 0.]))
    """
    if isinstance(thing, ForwardOperator):
        return thing
    options: dict[str, Any] = {
        "image_shape": image_shape or getattr(thing, "image_shape", None),
        "value_range": value_range or getattr(thing, "value_range", None) or _usual_range(thing),
        "noise_sigma": _noise_of(thing) if noise_sigma is None else noise_sigma,
    }
    if isinstance(thing, Operator):
        shape = options["image_shape"]
        if shape is None or prod(shape) != thing.in_features:
            raise ShapeError(
                f"as_operator: a {type(thing).__name__} takes {thing.in_features} numbers; give "
                f"image_shape=(C, H, W) with that product, not {shape}."
            )
        return _Given(
            thing,
            lambda x: thing(x.flatten(1)),
            lambda y: thing.adjoint_forward(y).reshape(-1, *shape),
            linear=True,
            **options,
        )
    if callable(getattr(thing, "A", None)):
        back = adjoint or getattr(thing, "A_adjoint", None)
        return _Given(thing, thing.A, back, linear=back is not None if linear is None else linear, **options)
    if callable(thing):
        return _Given(thing, thing, adjoint, linear=bool(linear) or adjoint is not None, **options)
    raise DataError(
        f"as_operator: cannot measure with a {type(thing).__name__}. Give a function, an Operator, or an "
        "object with A(x)."
    )


def _usual_range(thing: Any) -> tuple[float, float]:
    of_deepinv = any(kind.__module__.split(".")[0] == "deepinv" for kind in type(thing).__mro__)
    return (0.0, 1.0) if of_deepinv else (-1.0, 1.0)


def _noise_of(thing: Any) -> float | None:
    own = getattr(thing, "noise_sigma", None)
    if own is not None:
        return float(own)
    model = getattr(thing, "noise_model", None)
    if type(model).__name__ != "GaussianNoise":
        return None
    sigma = torch.as_tensor(model.sigma).flatten()  # type: ignore[union-attr]
    return float(sigma[0]) if len(sigma) == 1 else None


def adjoint_error(operator: ForwardOperator, x: Tensor, *, seed: int = 0) -> float:
    """Return how far `A_adjoint` is from the adjoint of A, relative to the size of the products.

    Parameters
    ----------
    operator : ForwardOperator
        Linear.
    x : Tensor, shape (B, C, H, W)
        Of the images' shape; its values are not used.
    seed : int
        Of the probes.

    Returns
    -------
    float
        ``|<A u, v> - <u, A^* v>| / (||A u|| ||v||)`` for random u, v, largest over the batch.

    Examples
    --------
    >>> from lowdim.inverse import Inpainting
    >>> adjoint_error(Inpainting(torch.eye(4)), torch.zeros(1, 1, 4, 4)) < 1e-6
    True
    """
    noise = ImageNoise(seed, batch=len(x))
    u = noise.like(x)
    Au = operator.A(u)
    v = noise.like(Au)
    left = (Au.conj() * v).real.flatten(1).sum(1)
    right = (u * operator.A_adjoint(v)).flatten(1).sum(1)
    size = torch.linalg.vector_norm(Au.flatten(1), dim=1) * torch.linalg.vector_norm(v.flatten(1), dim=1)
    return float(((left - right).abs() / size.clamp(min=1e-30)).max())
