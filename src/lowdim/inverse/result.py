"""Result: reconstructed images, and what they took."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import RunError
from lowdim.runs import atomic_json, atomic_tensors, plain, read_json, read_tensors

__all__ = ["Reconstruction"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a solver found.

    Parameters
    ----------
    image : Tensor, shape (B, C, H, W)
        In the operator's range of values.
    residual : Tensor, shape (B,)
        Mean squared residual of every image over sigma^2: about 1 if the data are met up to their noise.
        Where sigma is 0 or unknown, not divided.
    network_calls : int
        Evaluations of the diffusion model per image.
    iterations : Tensor of int, shape (B,)
        Steps of all optimizers on every image; 0 of closed forms.
    seconds : float
        Wall-clock time of the whole batch.
    latent : Tensor, shape (B, c, h, w), or None
        Of a latent prior.
    decoder_calls : int
        Evaluations of a latent prior's decoder per image.
    curve : Tensor, shape (steps, B)
        `residual` of the data-consistent images, one row per outer step.
    settings : dict
        Of the solver, JSON-ready.

    Examples
    --------
    >>> import tempfile
    >>> found = Reconstruction(torch.zeros(1, 1, 2, 2), torch.ones(1), 20, torch.zeros(1), 0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found.save(folder)
    ...     Reconstruction.load(folder).network_calls
    20
    """

    image: Tensor
    residual: Tensor
    network_calls: int
    iterations: Tensor
    seconds: float
    latent: Tensor | None = None
    decoder_calls: int = 0
    curve: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the images as a JSON-ready dictionary."""
        return {
            "residual": plain(self.residual.tolist()),
            "network_calls": self.network_calls,
            "decoder_calls": self.decoder_calls,
            "iterations": self.iterations.tolist(),
            "seconds": self.seconds,
            "settings": plain(self.settings),
        }

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the result as safetensors and JSON.

        Parameters
        ----------
        directory : path
            Made if need be.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        named = {"image": self.image, "latent": self.latent, "curve": self.curve}
        tensors = {name: t.detach().cpu().contiguous() for name, t in named.items() if t is not None}
        atomic_tensors(folder / "reconstruction.safetensors", tensors, {})
        atomic_json(folder / "reconstruction.json", {"format": FORMAT, **self.to_dict()})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Reconstruction:
        """Read what `save` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        Reconstruction

        Raises
        ------
        RunError
            If the folder holds none, or one of another version.
        """
        folder = Path(directory)
        if not (folder / "reconstruction.json").is_file():
            raise RunError(
                f"Reconstruction.load: {folder} holds no reconstruction.json. Give a folder written by "
                "save()."
            )
        header = read_json(folder / "reconstruction.json")
        if header.get("format") != FORMAT:
            raise RunError(
                f"Reconstruction.load: {folder} has format {header.get('format')}, this lowdim reads "
                f"{FORMAT}. Install the version that wrote it, or reconstruct again."
            )
        tensors, _ = read_tensors(folder / "reconstruction.safetensors")
        return cls(
            image=tensors["image"],
            residual=torch.tensor([float("nan") if r is None else r for r in header["residual"]]),
            network_calls=header["network_calls"],
            iterations=torch.tensor(header["iterations"]),
            seconds=header["seconds"],
            latent=tensors.get("latent"),
            decoder_calls=header["decoder_calls"],
            curve=tensors["curve"],
            settings=header["settings"],
        )
