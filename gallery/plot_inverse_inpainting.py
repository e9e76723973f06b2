"""
Most of the pixels are missing
==============================

Seventy percent of the pixels of a photograph are gone. A prior of small patches
fills them in, in ten evaluations of its denoiser.
"""

# %%
# The prior is a mixture of Gaussians, fitted to patches of 16 x 16 pixels of other photographs. Its denoiser
# is exact, so that what a solver does wrong is its own.

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage.data import camera
from skimage.transform import rescale

from lowdim.inverse import DCDP, DPS, GMMPrior, Inpainting, psnr
from lowdim.inverse.patches import patches

prior = GMMPrior.fit(patches("train", count=5000), components=12, max_iter=6)

# %%
# A photograph that the prior has not seen, cut into 64 patches, and a mask for each of them. Noise of 0.01
# is added to the pixels that are left; values are in [-1, 1].

photo = torch.as_tensor(2 * rescale(camera() / 255, 1 / 4, anti_aliasing=True) - 1, dtype=torch.float32)
tiles = photo.unfold(0, 16, 16).unfold(1, 16, 16).reshape(-1, 1, 16, 16)
operator = Inpainting.random(tuple(tiles.shape), missing=0.7, seed=0)
y = operator.measure(tiles, sigma=0.01, seed=0)

# %%
# Three solvers. DCDP alternates agreement with the data and denoising. As in the paper, it adds noise before
# it denoises, which makes a likely image; without, it comes nearer to the mean of all likely images. DPS
# follows a gradient through the denoiser, which costs three times as much per step, and it takes ten times
# as many.

solvers = {
    "DCDP, 20 calls": DCDP(prior, steps=20, t0=0.2),
    "DPS, 100 calls": DPS(prior, steps=100, zeta=1.0),
    "DCDP without noise, 10 calls": DCDP.without_noise(prior, steps=10),
}
found = {name: solver(y, operator, sigma=0.01, seed=0) for name, solver in solvers.items()}
for name, result in found.items():
    print(f"{name:<30} {float(psnr(result.image, tiles).mean()):5.2f} dB, {1000 * result.seconds:6.0f} ms")

# %%


def whole(x):
    """Put the patches back."""
    return x.reshape(8, 8, 16, 16).permute(0, 2, 1, 3).reshape(128, 128)


shown = {"truth": tiles, "30 % of it": torch.where(operator.mask, y, torch.nan)}
shown |= {name: result.image for name, result in found.items()}
fig, axes = plt.subplots(1, 5, figsize=(11, 2.6), layout="constrained")
for ax, (name, x) in zip(axes, shown.items(), strict=True):
    ax.imshow(np.asarray(whole(x)), cmap="gray", vmin=-1, vmax=1)
    ax.set_title(name, fontsize=9)
    ax.set(xticks=[], yticks=[])
plt.show()
