"""diffusers: its networks, schedulers and autoencoders as priors, from memory or a local folder."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.errors import DataError, MissingExtra, ShapeError
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.priors import PREDICTIONS, Prior
from lowdim.inverse.schedule import alphas_cumprod_of
from lowdim.runs import read_json

__all__ = ["PixelPrior", "latent_prior", "latent_prior_from_folder", "new_unet"]

UNETS = ("UNet2DModel", "UNet2DConditionModel")

AUTOENCODERS = ("AutoencoderKL", "VQModel")


class PixelPrior(Prior):
    """A U-Net of diffusers as a prior of the images that it was trained on.

    Parameters
    ----------
    unet : UNet2DModel or UNet2DConditionModel
        Set to evaluation; its parameters need no gradient any more. Of 2 C output channels, those of a
        network that has learned its variance, the first C are used.
    scheduler : scheduler of diffusers
        Its ``alphas_cumprod`` and kind of prediction are read, see `alphas_cumprod_of`.
    cond : Tensor, shape (tokens, features), optional
        Embedding that a `UNet2DConditionModel` needs, such as that of the empty prompt.
    size : (int, int), optional
        Height and width, where they are not those that the network was made for.
    precision : torch.dtype, optional
        Of the network's arithmetic, such as ``torch.bfloat16``; everything else stays in that of the images.
    compile : bool
        Whether the network is compiled: slow once, faster for many calls of one shape.

    Raises
    ------
    DataError, ShapeError
        If network and scheduler are of no kind that is known, or do not fit.

    Examples
    --------
    >>> from lowdim.inverse.digits import digits, digits_prior
    >>> prior, x = digits_prior(), digits("test")[:2]
    >>> noisy = prior.add_noise(x, 100, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    >>> bool(((prior.x0(noisy, 100) - x) ** 2).mean() < ((noisy - x) ** 2).mean())
    True
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        *,
        cond: Tensor | None = None,
        size: tuple[int, int] | None = None,
        precision: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        kind = type(unet).__name__
        if kind not in UNETS:
            raise DataError(
                f"prior: a {kind} is no U-Net of diffusers that is known. Use {' or '.join(UNETS)}."
            )
        if kind == "UNet2DConditionModel" and cond is None:
            raise DataError(
                "prior: a UNet2DConditionModel needs cond, the embedding of a prompt, (tokens, features). "
                "Give that of the empty one (text_encoder of its pipeline), or use LatentPrior.from_pipeline."
            )
        config = unet.config
        prediction: Any = getattr(scheduler.config, "prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise DataError(
                f"prior: prediction_type={prediction!r} of {type(scheduler).__name__} is unknown. Known are "
                f"{', '.join(PREDICTIONS)}."
            )
        channels, given = config.in_channels, config.out_channels
        if given not in (channels, 2 * channels):
            raise ShapeError(
                f"prior: the U-Net takes {channels} channels and gives {given}, expected as many or twice "
                "as many. Networks for inpainting or upscaling take more than an image; use an "
                "unconditional one."
            )
        sides = size or config.sample_size
        sides = (sides, sides) if isinstance(sides, int) else sides
        factor = 2 ** (len(config.block_out_channels) - 1)
        if sides is not None and any(side % factor for side in sides):
            raise ShapeError(
                f"prior: sides of {tuple(sides)} must divide by {factor}, which the U-Net halves to."
            )
        shape = None if sides is None else (channels, *sides)
        super().__init__(alphas_cumprod_of(scheduler), prediction=prediction, shape=shape)
        self.unet, self.cond, self.precision = unet.eval().requires_grad_(False), cond, precision
        self._network = torch.compile(unet) if compile else unet
        self.to(next(unet.parameters()).device)

    @classmethod
    def from_diffusers(cls, unet: Any, scheduler: Any, **options: Any) -> PixelPrior:
        """Wrap a network that is in memory; the same as the class itself.

        Parameters
        ----------
        unet, scheduler
            As of the class.
        **options
            cond, size, precision, compile.

        Returns
        -------
        PixelPrior
        """
        return cls(unet, scheduler, **options)

    @classmethod
    def from_pipeline(cls, pipeline: Any, **options: Any) -> PixelPrior:
        """Wrap the unet and the scheduler of a pipeline of images that is in memory.

        Parameters
        ----------
        pipeline : DiffusionPipeline
            Such as a DDPMPipeline.
        **options
            cond, size, precision, compile.

        Returns
        -------
        PixelPrior

        Raises
        ------
        DataError
            If it has no unet, or an autoencoder, too.
        """
        unet, latent = getattr(pipeline, "unet", None), {"vae", "vqvae"} & set(vars(pipeline))
        if unet is None or latent:
            raise DataError(
                f"PixelPrior: a {type(pipeline).__name__} has {'an autoencoder' if latent else 'no U-Net'}. "
                f"Use {'LatentPrior.from_pipeline' if latent else 'a pipeline of images'}."
            )
        return cls(unet, pipeline.scheduler, **options)

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], **options: Any) -> PixelPrior:
        """Read a pipeline of diffusers from a local folder, unet/ and scheduler/.

        Parameters
        ----------
        path : path
            Nothing is downloaded and nothing unpickled: weights are safetensors.
        **options
            cond, size, precision, compile.

        Returns
        -------
        PixelPrior

        Raises
        ------
        MissingExtra, DataError
        """
        folder = Path(path)
        return cls(_network(folder / "unet", UNETS), _scheduler(folder / "scheduler"), **options)

    def _output(self, x: Tensor, t: Tensor, abar: Tensor) -> Tensor:
        extra = {} if self.cond is None else {"encoder_hidden_states": self._condition(x)}
        enabled = self.precision is not None
        with torch.autocast(x.device.type, dtype=self.precision or torch.bfloat16, enabled=enabled):
            output = self._network(x, t, **extra).sample
        return output[:, : x.shape[1]].to(x.dtype)

    def _condition(self, x: Tensor) -> Tensor:
        cond = torch.as_tensor(self.cond).to(device=x.device, dtype=x.dtype)
        return cond.reshape(1, *cond.shape[-2:]).expand(len(x), -1, -1)

    def to(self, device: torch.device | str) -> PixelPrior:
        """Move to a `device`, in place, and return itself."""
        super().to(device)
        self.unet.to(device)
        return self


class _Coder(nn.Module):
    """An autoencoder of diffusers: the mode of a variational one, one that quantizes before it does."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.quantizes = vae, type(vae).__name__ == "VQModel"

    def encode(self, x: Tensor) -> Tensor:
        found = self.vae.encode(x)
        return found.latents if self.quantizes else found.latent_dist.mode()

    def decode(self, z: Tensor) -> Tensor:
        extra = {"force_not_quantize": True} if self.quantizes else {}
        return self.vae.decode(z, **extra).sample


def latent_prior(unet: Any, scheduler: Any, vae: Any, **options: Any) -> LatentPrior:
    """Return the prior of a latent diffusion that is in memory; see `LatentPrior.from_diffusers`.

    Parameters
    ----------
    unet, scheduler
        As of `PixelPrior`.
    vae : AutoencoderKL or VQModel
    **options
        cond, size (of latents), precision, compile.

    Returns
    -------
    LatentPrior

    Raises
    ------
    DataError, ShapeError
    """
    kind = type(vae).__name__
    if kind not in AUTOENCODERS:
        raise DataError(f"prior: a {kind} is no autoencoder that is known. Use {' or '.join(AUTOENCODERS)}.")
    config = vae.config
    if unet.config.in_channels != config.latent_channels:
        raise ShapeError(
            f"prior: the U-Net takes {unet.config.in_channels} channels, the {kind} makes latents of "
            f"{config.latent_channels}. Take both from one checkpoint, whose U-Net is unconditional or for "
            "text only."
        )
    vae.eval().requires_grad_(False)
    coder = _Coder(vae)
    scaling: float | Tensor = getattr(config, "scaling_factor", None) or 1.0
    shift: float | Tensor = getattr(config, "shift_factor", None) or 0.0
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        shift = torch.tensor(mean).reshape(1, -1, 1, 1)
        scaling = scaling / torch.tensor(std).reshape(1, -1, 1, 1)
    return LatentPrior(
        PixelPrior(unet, scheduler, **options),
        encode=coder.encode,
        decode=coder.decode,
        scaling=scaling,
        shift=shift,
        factor=2 ** (len(config.block_out_channels) - 1),
    )


def latent_prior_from_folder(path: str | os.PathLike[str], **options: Any) -> LatentPrior:
    """Read a latent pipeline of diffusers from a local folder; see `LatentPrior.from_folder`.

    Parameters
    ----------
    path : path
    **options
        As of `latent_prior`.

    Returns
    -------
    LatentPrior

    Raises
    ------
    MissingExtra, DataError
    """
    folder = Path(path)
    place = next((folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()), folder / "vae")
    vae = _network(place, AUTOENCODERS)
    return latent_prior(_network(folder / "unet", UNETS), _scheduler(folder / "scheduler"), vae, **options)


def empty_prompt(pipeline: Any) -> Tensor | None:
    """Return the embedding of the empty prompt, (tokens, features), of a text pipeline; None of others.

    Parameters
    ----------
    pipeline : DiffusionPipeline

    Returns
    -------
    Tensor or None
    """
    tokenizer, encoder = getattr(pipeline, "tokenizer", None), getattr(pipeline, "text_encoder", None)
    if tokenizer is None or encoder is None:
        return None
    length = tokenizer.model_max_length
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids.to(next(encoder.parameters()).device))[0][0]


def new_unet(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return an untrained U-Net and the scheduler with betas on a line.

    Parameters
    ----------
    config : mapping
        Of UNet2DModel.

    Returns
    -------
    unet : UNet2DModel
    scheduler : DDPMScheduler
    """
    package = _diffusers()
    return package.UNet2DModel(**config), package.DDPMScheduler()


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise MissingExtra(
            "diffusers", extra="diffusion", purpose="use diffusion models as priors"
        ) from error


def _network(folder: Path, known: tuple[str, ...]) -> Any:
    """Read a network of a known class from its folder, in single precision."""
    package = _diffusers()
    name = _class_of(folder / "config.json", known)
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{folder} holds no weights in safetensors. Write them with save_pretrained(folder, "
            "safe_serialization=True); pickled ones are not read."
        )
    try:
        network = getattr(package, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # whatever a damaged checkpoint leads to
        raise DataError(
            f"{folder} cannot be read as a {name} ({error}). Copy the checkpoint again."
        ) from error
    return network.float()


def _scheduler(folder: Path) -> Any:
    package = _diffusers()
    name = _class_of(folder / "scheduler_config.json", None)
    if not hasattr(package, name):
        raise DataError(
            f"{folder}: diffusers has no {name}. Use DDPMScheduler with the betas of the checkpoint."
        )
    return getattr(package, name).from_pretrained(folder, local_files_only=True)


def _class_of(path: Path, known: tuple[str, ...] | None) -> str:
    if not path.is_file():
        raise DataError(
            f"prior: {path.parent} holds no {path.name}. Give the folder of a pipeline of diffusers, with "
            "unet/ and scheduler/ (and vae/ or vqvae/ of a latent one)."
        )
    name = str(read_json(path).get("_class_name"))
    if known is not None and name not in known:
        raise DataError(
            f"prior: {path.parent} holds a {name}, expected {' or '.join(known)}. Use such a checkpoint."
        )
    return name
