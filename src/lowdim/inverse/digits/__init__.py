"""Digits: a real prior that is small enough to be in the package.

A U-Net of 634,273 parameters that was trained on 8 x 8 handwritten digits (`digits_prior`, needs diffusers),
and an autoencoder of them with a Gaussian mixture of its latents (`latent_digits_prior`, needs nothing more).
They show and test what the solvers do; they know nothing but digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowdim.inverse.digits.autoencoder import DigitsAutoencoder
from lowdim.inverse.digits.images import digits

if TYPE_CHECKING:
    from lowdim.inverse.latent import LatentPrior
    from lowdim.inverse.priors import Prior

__all__ = ["DigitsAutoencoder", "digits", "digits_prior", "latent_digits_prior"]

FOLDER = Path(__file__).parent


def digits_prior() -> Prior:
    """Return the U-Net of digits, in images of 1 x 8 x 8.

    Returns
    -------
    PixelPrior
        1000 times, betas on a line.

    Raises
    ------
    MissingExtra
        If diffusers is not installed.

    Examples
    --------
    >>> prior = digits_prior()
    >>> prior.shape, prior.train_steps
    ((1, 8, 8), 1000)
    """
    from lowdim.inverse.diffusers import PixelPrior

    return PixelPrior.from_folder(FOLDER)


def latent_digits_prior() -> LatentPrior:
    """Return an autoencoder of digits with the Gaussian mixture of its latents, of 2 x 4 x 4.

    Returns
    -------
    LatentPrior
        The denoiser of its diffusion is exact, so that what a solver does wrong is its own.

    Examples
    --------
    >>> prior = latent_digits_prior()
    >>> x = digits("test")[:4]
    >>> prior.encode(x).shape, bool(((prior.decode(prior.encode(x)) - x) ** 2).mean() < 0.01)
    (torch.Size([4, 2, 4, 4]), True)
    """
    from lowdim.inverse.gmm import GMMPrior
    from lowdim.inverse.latent import LatentPrior
    from lowdim.runs import read_tensors

    tensors, _ = read_tensors(FOLDER / "autoencoder.safetensors", remedy="Install lowdim again.")
    coder = DigitsAutoencoder().requires_grad_(False).eval()
    scaling = float(tensors.pop("scaling"))
    coder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    mixture = GMMPrior.load(FOLDER / "latents")
    return LatentPrior(mixture, encode=coder.encode, decode=coder.decode, scaling=scaling, factor=2)
