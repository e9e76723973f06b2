"""
Oscillation in singular directions, and where it ends
=====================================================

As many singular directions oscillate as have their edge of stability below the
learning rate. That is so for aligned weights; others leave such an oscillation.
"""

# %%
# The last steps at a learning rate between the second and the third critical one: two singular values
# oscillate, the third rests.

import matplotlib.pyplot as plt
import torch

from lowdim.dynamics import dln

s, depth, lr = [10.0, 9.5, 9.0], 3, 0.034
critical = dln.critical_lrs(s, depth=depth)
steps = dln.DeepLinear(s, depth=depth).fit(lr, steps=3000, record=("values",), last=14)

fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for i, value in enumerate(s):
    axes[0].plot(steps.times, steps.values[:, i], "o-", markersize=3, label=f"{value:g}")
axes[0].set(title=f"learning rate {lr}", xlabel="step", ylabel="singular values of the product")
axes[0].set_xticks(steps.times[1::4])
axes[0].legend(fontsize=8, loc="upper left")

# %%
# How much each changes in one step, over the learning rate: dots are measured, lines are the closed form.

rates = torch.linspace(0.030, 0.0375, 60, dtype=torch.float64)
run = dln.DeepLinear(s, depth=depth).fit(rates, steps=3000, record=("values",), last=2)
for i, value in enumerate(s):
    axes[1].plot(rates, run.values.diff(dim=1).abs()[:, 0, i], ".", color=f"C{i}")
    axes[1].plot(
        rates, dln.period2_orbit(value, depth=depth, lr=rates).amplitude, "-", color=f"C{i}", linewidth=0.8
    )
axes[1].set(title="aligned weights", xlabel="learning rate", ylabel="change in one step")

# %%
# Weights that are nearly aligned: the multiplier of deviations that mix singular directions, over two steps.
# From about ``2 / lambda_12`` on it is above 1, and the training leaves the oscillation. (Here all oscillate
# in step; of two that oscillate in turn it is larger still.)

multipliers = [float(dln.floquet(s, depth=depth, lr=float(rate)).transverse) for rate in rates]
axes[2].plot(rates, multipliers, ".-", color="C3", markersize=3)
axes[2].axvline(critical.mixing, color="k", linestyle="--", linewidth=0.8, label="2 / $\\lambda_{12}$")
for i, onset in enumerate(critical.onset):
    axes[2].axvline(onset, color=f"C{i}", linestyle=":", linewidth=1)
axes[2].set(title="deviations that mix directions", xlabel="learning rate", ylabel="multiplier in two steps")
axes[2].legend(fontsize=8)
plt.show()
