"""
Blurred and overexposed
=======================

A camera blurs and saturates: no linear map any more. Data consistency is then
a least-squares problem of its own, solved by Gauss-Newton in each step.
"""

# %%
# Any function of images is an operator. This one blurs and compresses bright and dark, of images in [-1, 1].

import matplotlib.pyplot as plt
import torch

from lowdim.inverse import DCDP, DPS, CircularBlur, GMMPrior, as_operator, gaussian_kernel, psnr
from lowdim.inverse.patches import patches

prior = GMMPrior.fit(patches("train", count=5000), components=12, max_iter=6)
images = patches("test", count=32)
blur = CircularBlur(gaussian_kernel(1.5))
camera = as_operator(lambda x: torch.tanh(1.5 * blur.A(x)), image_shape=(1, 16, 16))
y = camera.measure(images, sigma=0.02, seed=0)

# %%
# DPS follows the gradient of the residual through the network, and needs many steps. DCDP calls the network
# ten times without any gradient, and fits the data in between: by Adam, or by Gauss-Newton, which uses the
# operator's derivative in conjugate gradients.

solvers = {
    "DPS, 100 calls": DPS(prior, steps=100, zeta=0.5),
    "DCDP, Adam": DCDP(prior, steps=10),
    "DCDP, Gauss-Newton": DCDP(prior, steps=10, solver="gn", tau=1e-3),
    "without noise, Gauss-Newton": DCDP.without_noise(prior, solver="gn", tau=1e-3),
}
shown = {"truth": images, "measured": y}
for name, solver in solvers.items():
    found = solver(y, camera, sigma=0.02, seed=0)
    shown[name] = found.image
    quality = float(psnr(found.image, images).mean())
    print(f"{name:<28} {quality:5.2f} dB, {found.network_calls:>3} calls, {1000 * found.seconds:5.0f} ms")

# %%
# Six of the patches.

fig, axes = plt.subplots(len(shown), 6, figsize=(6.6, 6.6), layout="constrained")
for row, (name, x) in zip(axes, shown.items(), strict=True):
    for ax, image in zip(row, x[:6], strict=True):
        ax.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
    label = name if name in ("truth", "measured") else f"{name}\n{float(psnr(x, images).mean()):.1f} dB"
    row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
plt.show()
