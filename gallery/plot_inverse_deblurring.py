"""
A photograph is out of focus
============================

A known blur is undone by a denoiser in ten evaluations. What the blur has
removed for good comes from the prior, and only there do solvers differ.
"""

# %%
# The prior is a mixture of Gaussians, fitted to patches of other photographs.

import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage.data import camera
from skimage.transform import rescale

from lowdim.inverse import DCDP, DPS, CircularBlur, GMMPrior, Problem, gaussian_kernel, pseudo_inverse, psnr
from lowdim.inverse.patches import patches

prior = GMMPrior.fit(patches("train", count=5000), components=12, max_iter=6)

# %%
# 64 patches of a photograph that the prior has not seen, blurred by a Gaussian of 1.5 pixels, with noise of
# 0.02; values are in [-1, 1].

photo = torch.as_tensor(2 * rescale(camera() / 255, 1 / 4, anti_aliasing=True) - 1, dtype=torch.float32)
tiles = photo.unfold(0, 16, 16).unfold(1, 16, 16).reshape(-1, 1, 16, 16)
operator = CircularBlur(gaussian_kernel(1.5))
y = operator.measure(tiles, sigma=0.02, seed=0)

# %%
# Dividing by the blur's transfer function amplifies noise beyond recognition. DCDP solves a small proximal
# problem in each step instead, in closed form by the fast Fourier transform. With this prior the mean of all
# images that fit is known exactly: no estimate has a smaller expected error.

solvers = {
    "DPS, 100 calls": DPS(prior, steps=100, zeta=1.0),
    "DCDP, 10 calls": DCDP(prior, steps=10),
    "without noise, 10 calls": DCDP.without_noise(prior, steps=10),
}
shown = {"truth": tiles, "measured": y, "inverse filter": pseudo_inverse(Problem.of(y, operator, sigma=0.02))}
for name, solver in solvers.items():
    found = solver(y, operator, sigma=0.02, seed=0)
    shown[name] = found.image
    print(f"{name:<24} {float(psnr(found.image, tiles).mean()):5.2f} dB, {1000 * found.seconds:5.0f} ms")
shown["best possible"] = prior.posterior_mean(y, operator, sigma=0.02)

# %%


def whole(x):
    """Put the patches back."""
    return x.reshape(8, 8, 16, 16).permute(0, 2, 1, 3).reshape(128, 128)


fig, axes = plt.subplots(1, len(shown), figsize=(12, 2.3), layout="constrained")
for ax, (name, x) in zip(axes, shown.items(), strict=True):
    ax.imshow(np.asarray(whole(x)), cmap="gray", vmin=-1, vmax=1)
    label = "" if name == "truth" else f"\n{float(psnr(x, tiles).mean()):.1f} dB"
    ax.set_title(name + label, fontsize=8)
    ax.set(xticks=[], yticks=[])
plt.show()
