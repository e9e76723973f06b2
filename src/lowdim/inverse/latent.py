"""Latent prior: a diffusion on latents, and the autoencoder between latents and images."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.inverse.priors import Calls, Prior

__all__ = ["LatentPrior"]


class LatentPrior(Prior):
    """A prior of latents ``z = (E(x) - shift) * scaling``, with their images ``x = D(z / scaling + shift)``.

    The diffusion is asked about latents (`predict`, `eps`, `x0`), which are never clamped; `clip` and
    ``value_range`` are of images.

    Parameters
    ----------
    prior : Prior
        Diffusion of latents: a `GMMPrior` fitted to them, a `CallablePrior`, or a network.
    encode : callable
        ``E``, images (B, C, H, W) to (B, c, h, w); of a variational one the mode, of a quantizing one what is
        before quantization.
    decode : callable
        ``D``, differentiable, so without quantization.
    scaling, shift : float or Tensor
        Factors of the checkpoint between E's numbers and those the diffusion was trained on; tensors
        broadcast over (B, c, h, w).
    value_range : (float, float)
        Of the decoder's images.
    factor : int
        Pixels per latent pixel along one side; images must divide by it.

    Attributes
    ----------
    calls, encoder_calls, decoder_calls : Calls
        Evaluations of the network, of E and of D so far.
    decoder_gradients : Calls
        Those of D that kept what a gradient needs.

    Examples
    --------
    >>> from lowdim.inverse import CallablePrior, linear_alphas_cumprod
    >>> latents = CallablePrior(lambda z, t: z, linear_alphas_cumprod())
    >>> prior = LatentPrior(latents, encode=lambda x: x[..., ::2, ::2], factor=2, scaling=0.5,
    ...                     decode=lambda z: z.repeat_interleave(2, -1).repeat_interleave(2, -2))
    >>> z = prior.encode(torch.ones(1, 1, 4, 4))
    >>> z.shape, float(z.max()), float(prior.decode(z).max()), prior.decoder_calls.images
    (torch.Size([1, 1, 2, 2]), 0.5, 1.0, 1)
    """

    def __init__(
        self,
        prior: Prior,
        *,
        encode: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor], Tensor],
        scaling: float | Tensor = 1.0,
        shift: float | Tensor = 0.0,
        value_range: tuple[float, float] = (-1.0, 1.0),
        factor: int = 1,
    ) -> None:
        if not isinstance(prior, Prior) or isinstance(prior, LatentPrior):
            raise DataError(
                f"LatentPrior: got a {type(prior).__name__}, expected a prior of latents. Wrap a function by "
                "CallablePrior(eps, alphas_cumprod)."
            )
        if not bool((torch.as_tensor(scaling) != 0).all()):
            raise DataError("LatentPrior: scaling must not be 0. Use the scaling factor of the checkpoint.")
        super().__init__(
            prior.alphas_cumprod, prediction=prior.prediction, shape=prior.shape, value_range=value_range
        )
        self.prior, self.factor = prior, factor
        self._encode, self._decode = encode, decode
        self.scaling, self.shift = scaling, shift
        self.encoder_calls, self.decoder_calls, self.decoder_gradients = Calls(), Calls(), Calls()

    @classmethod
    def from_diffusers(cls, unet: Any, scheduler: Any, vae: Any, **options: Any) -> LatentPrior:
        """Wrap networks of diffusers that are in memory.

        Parameters
        ----------
        unet : UNet2DModel or UNet2DConditionModel
        scheduler : scheduler of diffusers
            Its ``alphas_cumprod`` and its kind of prediction are read.
        vae : VQModel or AutoencoderKL
            With its scaling and shift.
        **options
            Those of `PixelPrior`: cond, size (of latents), precision, compile.

        Returns
        -------
        LatentPrior
            Networks are set to evaluation, and their parameters need no gradient any more.

        Raises
        ------
        DataError, ShapeError
        """
        from lowdim.inverse.diffusers import latent_prior

        return latent_prior(unet, scheduler, vae, **options)

    @classmethod
    def from_pipeline(cls, pipeline: Any, **options: Any) -> LatentPrior:
        """Wrap a pipeline of diffusers that is in memory; one for text is asked with the empty prompt.

        Parameters
        ----------
        pipeline : DiffusionPipeline
            With unet, scheduler and vae or vqvae.
        **options
            As of `from_diffusers`.

        Returns
        -------
        LatentPrior

        Raises
        ------
        DataError, ShapeError
        """
        from lowdim.inverse.diffusers import empty_prompt, latent_prior

        vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
        if vae is None or getattr(pipeline, "unet", None) is None:
            raise DataError(
                f"LatentPrior: a {type(pipeline).__name__} has no U-Net or no autoencoder. Use a latent "
                "pipeline, or PixelPrior of its unet and scheduler."
            )
        if "cond" not in options:
            options["cond"] = empty_prompt(pipeline)
        return latent_prior(pipeline.unet, pipeline.scheduler, vae, **options)

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], **options: Any) -> LatentPrior:
        """Read a pipeline of diffusers from a local folder: unet/, scheduler/, and vae/ or vqvae/.

        Parameters
        ----------
        path : path
            Nothing is downloaded, nothing is unpickled.
        **options
            As of `from_diffusers`.

        Returns
        -------
        LatentPrior

        Raises
        ------
        MissingExtra, DataError, ShapeError
        """
        from lowdim.inverse.diffusers import latent_prior_from_folder

        return latent_prior_from_folder(path, **options)

    def _output(self, x: Tensor, t: Tensor, abar: Tensor) -> Tensor:
        return self.prior._output(x, t, abar)

    def to(self, device: torch.device | str) -> LatentPrior:
        """Move to a `device`, in place, and return itself."""
        super().to(device)
        self.prior.to(device)
        for coder in (self._encode, self._decode):
            network = getattr(coder, "__self__", coder)
            if isinstance(network, torch.nn.Module):
                network.to(device)
        self.scaling, self.shift = (
            value.to(device) if isinstance(value, Tensor) else value for value in (self.scaling, self.shift)
        )
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Return latents of images.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W)

        Returns
        -------
        Tensor, shape (B, c, h, w)

        Raises
        ------
        ShapeError
            If a side does not divide by the factor of the autoencoder.
        """
        if any(side % self.factor for side in x.shape[-2:]):
            raise ShapeError(
                f"LatentPrior: images of {tuple(x.shape[-2:])} pixels do not divide by {self.factor}, the "
                "factor of the autoencoder. Cut or pad them."
            )
        self.encoder_calls.add(len(x))
        return (self._encode(x) - self.shift) * self.scaling

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents, differentiable.

        Parameters
        ----------
        z : Tensor, shape (B, c, h, w)

        Returns
        -------
        Tensor, shape (B, C, H, W)
            Not clamped.
        """
        self.decoder_calls.add(len(z))
        if torch.is_grad_enabled() and z.requires_grad:
            self.decoder_gradients.add(len(z))
        return self._decode(z / self.scaling + self.shift)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(C, H, W) of its images, where the shape of latents is fixed."""
        if self.shape is None:
            return None
        with torch.no_grad():
            z = torch.zeros(1, *self.shape, device=self.device)
            return tuple(self._decode(z / self.scaling + self.shift).shape[1:])

    def latent_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return (c, h, w) of the latents of images such as `x`."""
        if self.shape is not None:
            return self.shape
        with torch.no_grad():
            return tuple(self._encode(x[:1]).shape[1:])
