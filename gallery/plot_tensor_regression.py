"""
A cross from four hundred noisy numbers
=======================================

Images of 32 x 32 pixels of pure noise, and one number for each. Which pixels
made the numbers? There are 1,024 of them, and 400 samples.
"""

# %%
# The truth is a cross, a matrix of rank 2. Every number is the sum of the pixels under it, and noise.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LassoCV, RidgeCV

from lowdim.regress import TensorRegressorCV

rng = np.random.default_rng(0)
truth = np.zeros((32, 32))
truth[14:18, 8:24] = truth[8:24, 14:18] = 1
X = rng.normal(size=(400, 32, 32))
scores = np.tensordot(X, truth, 2)
y = scores + 0.1 * scores.std() * rng.normal(size=400)

# %%
# One coefficient per pixel; most of them zero; and a matrix whose rank is chosen from 1 to 3.

flat = X.reshape(400, -1)
search = TensorRegressorCV().fit(X, y)
found = {
    "truth": truth,
    "ridge regression": RidgeCV(np.logspace(-2, 5, 15)).fit(flat, y).coef_.reshape(32, 32),
    "lasso": LassoCV(cv=5, alphas=15, max_iter=5000).fit(flat, y).coef_.reshape(32, 32),
    f"rank {search.rank_}": search.coef_,
}

# %%
# The matrix of low rank has 128 numbers where the others have 1,024.

fig, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
for ax, (name, W) in zip(axes, found.items(), strict=True):
    error = np.linalg.norm(W - truth) / np.linalg.norm(truth)
    ax.imshow(W, cmap="RdBu_r", vmin=-1.2, vmax=1.2)
    ax.set(title=name if name == "truth" else f"{name}\nerror {error:.0%}", xticks=[], yticks=[])
plt.show()
