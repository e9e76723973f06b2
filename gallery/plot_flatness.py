"""
Small starts end at flat minima
===============================

All minima of a deep linear network have the same product and loss 0. How sharp
the one is that gradient descent finds depends on where it began.
"""

# %%
# Two and three layers for the same 4 x 4 matrix, Gaussian starts of eight scales with eight seeds each, all
# in one run per depth, until the loss is below 1e-10.

import matplotlib.pyplot as plt
import numpy as np

from lowdim.dynamics import dln, flatness

s, scales = [3.0, 2.0, 1.0, 0.5], np.geomspace(0.1, 1.0, 8).round(3)
sweeps = {depth: flatness.sweep_init(s, depth=depth, scales=scales, seeds=8, tol=1e-10) for depth in (2, 3)}
sweeps[3].medians().round(4)

# %%
# Sharpness: the excess over the flattest minimum, that of balanced layers, falls like the fourth power of the
# scale. The dots are single trainings.

fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for k, (depth, sweep) in enumerate(sweeps.items()):
    table, medians = sweep.table, sweep.medians()
    axes[0].loglog(table["scale"], table["excess"], ".", color=f"C{k}", alpha=0.4)
    axes[0].loglog(medians.index, medians["excess"], "-", color=f"C{k}", label=f"{depth} layers")
axes[0].loglog(scales, 0.1 * scales**4, "k--", linewidth=0.8, label="scale$^4$")
axes[0].set(xlabel="initial scale", ylabel="sharpness / smallest sharpness - 1")
axes[0].legend()

# %%
# Trace: it falls to that of balanced layers, too. With three layers this is not the smallest one (dashed):
# flat in the largest eigenvalue and flat in the trace are two things.

for k, (depth, sweep) in enumerate(sweeps.items()):
    medians = sweep.medians()
    balanced = dln.trace(dln.balanced_layers(s, depth=depth))
    axes[1].semilogx(
        medians.index, medians["trace_ratio"], "o-", markersize=3, color=f"C{k}", label=f"{depth} layers"
    )
    smallest = float(flatness.smallest_trace(s, depth=depth) / balanced)
    axes[1].axhline(smallest, color=f"C{k}", linestyle="--", linewidth=0.8)
axes[1].set(xlabel="initial scale", ylabel="trace / trace of balanced layers")
axes[1].legend()
plt.show()
