"""
How few magnitudes are enough
=============================

Below some number of measurements per pixel recovery fails, above it is exact.
The Tucker model has its transition where the matrix model is far from its own.
"""

# %%
# The errors are those of the claim ``phase.transition``: 40 frames of 16 x 16 pixels, multilinear ranks
# (4, 4, 4), a Gaussian matrix per frame, no noise, three seeds. ``lowdim phase transition VIDEO`` measures it
# for a video of your own.

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

claim = json.loads(Path("..", "docs", "claims", "phase.transition.json").read_text())
details = claim["details"][0]

# %%
# Every dot is a seed, every line the median.

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for name, label, color in (("tucker", "Tucker", "C0"), ("low rank", "low rank (AltMinLowRaP)", "C1")):
    errors = np.array(details[name])
    ax.semilogy(details["ratios"], np.median(errors, 1), "-", color=color, label=label)
    ax.semilogy(details["ratios"], errors, ".", color=color)
ax.set(xlabel="measurements per pixel", ylabel="relative error of all frames")
ax.legend()
plt.show()
