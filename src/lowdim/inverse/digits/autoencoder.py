"""Autoencoder: 8 x 8 digits as 2 x 4 x 4 numbers and back."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DigitsAutoencoder"]


class DigitsAutoencoder(nn.Module):
    """A small convolutional autoencoder, stride 2.

    Parameters
    ----------
    channels : int
        Of the hidden layers.
    latent_channels : int
        Of the latent.

    Examples
    --------
    >>> import torch
    >>> coder = DigitsAutoencoder()
    >>> z = coder.encode(torch.zeros(3, 1, 8, 8))
    >>> z.shape, coder.decode(z).shape
    (torch.Size([3, 2, 4, 4]), torch.Size([3, 1, 8, 8]))
    """

    def __init__(self, channels: int = 48, latent_channels: int = 2) -> None:
        super().__init__()
        c, k = channels, latent_channels
        self.encoder = nn.Sequential(
            nn.Conv2d(1, c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, c, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, k, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(k, c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, c, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(c, c, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(c, 1, 3, padding=1),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent of images.

        Parameters
        ----------
        x : Tensor, shape (batch, 1, 8, 8)
            In [-1, 1].

        Returns
        -------
        Tensor, shape (batch, 2, 4, 4)
        """
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents.

        Parameters
        ----------
        z : Tensor, shape (batch, 2, 4, 4)

        Returns
        -------
        Tensor, shape (batch, 1, 8, 8)
            In [-1, 1], up to the error of the decoder; not clamped.
        """
        return self.decoder(z)
