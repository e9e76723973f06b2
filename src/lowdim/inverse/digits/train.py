"""Train the digits networks again: ``python -m lowdim.inverse.digits.train FOLDER``.

Everything is drawn from seed 0 and computed on the CPU; with one thread, two runs on one machine agree to the
bit, and runs on different machines up to the order of sums.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.inverse.digits.autoencoder import DigitsAutoencoder
from lowdim.inverse.digits.images import digits
from lowdim.inverse.gmm import GMMPrior
from lowdim.runs import atomic_tensors

__all__ = ["train_autoencoder", "train_unet", "write"]

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "add_attention": False,
}
"""Configuration of the U-Net, 634,273 parameters."""

BATCH, RATE, WARM_UP = 64, 2e-3, 50

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


def train_unet(*, steps: int, seed: int = 0) -> tuple[Any, Any]:
    """Train the noise predictor of digits.

    Parameters
    ----------
    steps : int
        Of AdamW on 64 digits each.
    seed : int

    Returns
    -------
    unet : diffusers.UNet2DModel
        Its weights averaged over the last steps (0.998).
    scheduler : diffusers.DDPMScheduler
        1000 times, betas on a line from 1e-4 to 0.02.
    """
    from lowdim.inverse.diffusers import new_unet

    torch.manual_seed(seed)
    unet, scheduler = new_unet(UNET)
    abar: Tensor = scheduler.alphas_cumprod

    def loss(network: nn.Module, x: Tensor, g: torch.Generator) -> Tensor:
        t = torch.randint(len(abar), (len(x),), generator=g)
        noise = torch.randn(x.shape, generator=g)
        a = abar[t].reshape(-1, 1, 1, 1)
        return ((network(a.sqrt() * x + (1 - a).sqrt() * noise, t).sample - noise) ** 2).mean()

    return _train(unet, loss, steps=steps, weight_decay=1e-4, average=0.998, seed=seed), scheduler


def train_autoencoder(*, steps: int, noise: float = 0.05, seed: int = 0) -> DigitsAutoencoder:
    """Train the autoencoder of digits.

    Parameters
    ----------
    steps : int
        Of AdamW on 64 digits each.
    noise : float
        Standard deviation of what is added to latents, so that near latents have near images.
    seed : int

    Returns
    -------
    DigitsAutoencoder
    """
    torch.manual_seed(seed)

    def loss(coder: Any, x: Tensor, g: torch.Generator) -> Tensor:
        z = coder.encode(x)
        return ((coder.decode(z + noise * torch.randn(z.shape, generator=g)) - x) ** 2).mean()

    return _train(DigitsAutoencoder(), loss, steps=steps, weight_decay=1e-2, average=0.0, seed=seed)


def _train(network: Any, loss: Loss, *, steps: int, weight_decay: float, average: float, seed: int) -> Any:
    """Return a network trained with a cosine of the rate after 50 steps, averaged exponentially."""
    x, g = digits("train"), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=weight_decay)
    averaged = copy.deepcopy(network).eval()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss(network, x[torch.randint(len(x), (BATCH,), generator=g)], g).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        keep = min(average, (1 + step) / (10 + step))
        with torch.no_grad():
            for old, new in zip(averaged.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
    return averaged


def write(folder: Path, unet: Any, scheduler: Any, coder: DigitsAutoencoder) -> None:
    """Write the networks in half precision, and the mixture of the latents of what was written.

    Parameters
    ----------
    folder : Path
        Made if need be.
    unet, scheduler
        From `train_unet`.
    coder : DigitsAutoencoder
        From `train_autoencoder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unet.half().save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    coder = coder.half()
    weights = {name: weight.clone() for name, weight in coder.state_dict().items()}
    with torch.no_grad():
        z = coder.float().encode(digits("train"))
    scaling = 1 / z.std()  # latents of variance 1, as a diffusion expects them
    atomic_tensors(folder / "autoencoder.safetensors", {**weights, "scaling": scaling})
    GMMPrior.fit(z * scaling, components=20, regularization=1e-2, seed=0).save(folder / "latents")


def main() -> None:
    """Train all and write them to a folder."""
    parser = argparse.ArgumentParser(description="Train the digits networks of lowdim again.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unet-steps", type=int, default=2030)
    parser.add_argument("--autoencoder-steps", type=int, default=5000)
    options = parser.parse_args()
    unet, scheduler = train_unet(steps=options.unet_steps)
    write(options.folder, unet, scheduler, train_autoencoder(steps=options.autoencoder_steps))


if __name__ == "__main__":
    main()
