"""
Sixteen pixels from one
=======================

Patches of photographs are seen four times smaller. The best possible estimate
is known here; see which solver comes near it, and at what cost.
"""

# %%
# With a mixture of Gaussians as the prior, the mean of all images that the measurement allows is known in
# closed form. No estimate has a smaller mean square error on images drawn from the mixture.

import matplotlib.pyplot as plt

from lowdim.inverse import DCDP, DPS, GMMPrior, Pooling, Problem, evaluate, pseudo_inverse, psnr
from lowdim.inverse.patches import patches

prior = GMMPrior.fit(patches("train", count=5000), components=12, max_iter=6)
images, operator, sigma = prior.sample(48, seed=0), Pooling(4), 0.02
y = operator.measure(images, sigma=sigma, seed=0)

# %%
# DCDP needs one evaluation of the denoiser per step, and few steps. Its variant without noise comes nearest
# to the best estimate. A mean over several runs does that for the one with noise, at their price.

solvers = {
    "DPS, 100 steps": DPS(prior, steps=100, zeta=1.0),
    "DCDP, 10": DCDP(prior, steps=10),
    "DCDP, mean of 4": DCDP(prior, steps=10, average=4),
    "DCDP without noise, 10": DCDP.without_noise(prior, steps=10),
}
table = evaluate(solvers, operator, images, sigma=sigma, seed=0)
print(table[["pooled psnr", "network calls"]].round(2))

# %%
# Five of the images, and how far each solver is from the best.

best = prior.posterior_mean(y, operator, sigma=sigma)
shown = {"truth": images, "measured": pseudo_inverse(Problem.of(y, operator, sigma=sigma))}
shown |= {name: solver(y, operator, sigma=sigma, seed=0).image for name, solver in solvers.items()}
shown["best possible"] = best
fig, axes = plt.subplots(len(shown), 5, figsize=(5.5, 7.6), layout="constrained")
for row, (name, x) in zip(axes, shown.items(), strict=True):
    for ax, image in zip(row, x[:5], strict=True):
        ax.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
    label = name if name == "truth" else f"{name}\n{float(psnr(x, images).mean()):.1f} dB"
    row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
plt.show()
