"""Priors: what a diffusion model knows of images, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["CallablePrior", "Calls", "Prediction", "Prior"]

Prediction = Literal["epsilon", "v_prediction", "sample"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass
class Calls:
    """How often a network was evaluated.

    Parameters
    ----------
    batches : int
        Calls, whatever the size of the batch.
    images : int
        Calls times images.

    Examples
    --------
    >>> calls = Calls()
    >>> calls.add(8)
    >>> calls
    Calls(batches=1, images=8)
    """

    batches: int = 0
    images: int = 0

    def add(self, images: int) -> None:
        """Count one call on so many `images`."""
        self.batches += 1
        self.images += images


class Prior(ABC):
    """A variance-preserving diffusion: ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) n``.

    A kind of prior says what its network gives (`prediction`) and evaluates it (`_output`); noise and clean
    image follow. Everything is differentiable in x unless the caller turns gradients off.

    Parameters
    ----------
    alphas_cumprod : Tensor, shape (T,)
        abar_t.
    prediction : {"epsilon", "v_prediction", "sample"}
        What the network gives: the noise, ``sqrt(abar) n - sqrt(1 - abar) x_0``, or the clean image.
    shape : tuple of int, optional
        (C, H, W) of its images, where only one is possible.
    value_range : (float, float)
        Of clean images.

    Attributes
    ----------
    calls : Calls
        How often the network was evaluated so far.
    """

    def __init__(
        self,
        alphas_cumprod: Any,
        *,
        prediction: Prediction = "epsilon",
        shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float32)
        if table.ndim != 1 or len(table) < 2 or not bool(((table >= 0) & (table <= 1)).all()):
            raise DataError(
                f"{type(self).__name__}: alphas_cumprod must be (T,) numbers in [0, 1], got shape "
                f"{tuple(table.shape)}."
            )
        if prediction not in PREDICTIONS:
            raise DataError(
                f"{type(self).__name__}: prediction={prediction!r} is unknown. Use one of "
                f"{', '.join(PREDICTIONS)}."
            )
        self.alphas_cumprod = table
        self.prediction: Prediction = prediction
        self.shape = None if shape is None else tuple(shape)
        self.value_range = value_range
        self.calls = Calls()

    @abstractmethod
    def _output(self, x: Tensor, t: Tensor, abar: Tensor) -> Tensor:
        """Evaluate the network at x (B, ...), times t (B,), with abar spread over x."""

    @property
    def train_steps(self) -> int:
        """Number T of times."""
        return len(self.alphas_cumprod)

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.alphas_cumprod.device

    def to(self, device: torch.device | str) -> Prior:
        """Move to a `device`, in place, and return itself."""
        self.alphas_cumprod = self.alphas_cumprod.to(device)
        return self

    def abar(self, t: int | Tensor, x: Tensor) -> Tensor:
        """Return abar at `t` in the type of `x`, spread over the axes of its images."""
        if isinstance(t, int) and not 0 <= t < self.train_steps:
            raise DataError(
                f"{type(self).__name__}: t={t} is outside 0..{self.train_steps - 1}, the network's times."
            )
        value = self.alphas_cumprod[t].to(device=x.device, dtype=x.dtype)
        return value.reshape(-1, *(1,) * (x.ndim - 1)).expand(len(x), *(1,) * (x.ndim - 1))

    def predict(self, x: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return noise and clean image in `x` at time `t`, from one evaluation of the network.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)
            Noisy images.
        t : int or Tensor of int, shape (B,)
            Index into ``alphas_cumprod``.

        Returns
        -------
        eps, x0 : Tensor, shape (B, C, H, W)
        """
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise ShapeError(
                f"{type(self).__name__}: got images {tuple(x.shape[1:])}, expected {self.shape}. Cut or "
                "resize them, or use another prior."
            )
        abar = self.abar(t, x)
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        output = self._output(x, times, abar)
        self.calls.add(len(x))
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        if self.prediction == "epsilon":
            return output, (x - noise * output) / signal.clamp(min=1e-6)
        if self.prediction == "v_prediction":
            return signal * output + noise * x, signal * x - noise * output
        return (x - signal * output) / noise.clamp(min=1e-12), output

    def eps(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return the noise in `x` at time `t`, shape of x."""
        return self.predict(x, t)[0]

    def x0(self, x: Tensor, t: int | Tensor) -> Tensor:
        """Return the expected clean image of `x` at time `t` (Tweedie's formula), shape of x."""
        return self.predict(x, t)[1]

    def add_noise(self, x: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Return ``sqrt(abar_t) x + sqrt(1 - abar_t) noise``, `x` at time `t`."""
        abar = self.abar(t, x)
        return abar.sqrt() * x + (1 - abar).sqrt() * noise

    def clip(self, x: Tensor) -> Tensor:
        """Return clean images `x` inside the range of values."""
        return x.clamp(*self.value_range)


class CallablePrior(Prior):
    """Any function as a prior.

    Parameters
    ----------
    eps : callable
        ``eps(x, t)`` with x (B, C, H, W) and t (B,) gives a tensor like x.
    alphas_cumprod : Tensor, shape (T,)
        abar_t that the function was trained with.
    prediction : {"epsilon", "v_prediction", "sample"}
        What it gives.
    shape : tuple of int, optional
        (C, H, W), where it takes no other.
    value_range : (float, float)
        Of clean images.

    Raises
    ------
    DataError, ShapeError
        If the table or the function's result does not fit.

    Examples
    --------
    The best denoiser of white noise in white noise:

    >>> from lowdim.inverse import CallablePrior, linear_alphas_cumprod
    >>> abar = linear_alphas_cumprod()
    >>> prior = CallablePrior(lambda x, t: (1 - abar[t]).sqrt().reshape(-1, 1, 1, 1) * x, abar)
    >>> x = torch.ones(1, 1, 2, 2)
    >>> torch.allclose(prior.x0(x, 100), abar[100].sqrt() * x), prior.calls.images
    (True, 1)
    """

    def __init__(
        self,
        eps: Callable[[Tensor, Tensor], Tensor],
        alphas_cumprod: Any,
        *,
        prediction: Prediction = "epsilon",
        shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(alphas_cumprod, prediction=prediction, shape=shape, value_range=value_range)
        self.network = eps

    def _output(self, x: Tensor, t: Tensor, abar: Tensor) -> Tensor:
        output = self.network(x, t)
        if not isinstance(output, Tensor) or output.shape != x.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(f"CallablePrior: the function gave {got}, expected {tuple(x.shape)} like x.")
        return output
