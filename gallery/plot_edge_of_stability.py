"""
A deep linear network at the edge of stability
==============================================

From a critical learning rate on, singular values of the product oscillate with
period 2, later with period 4, then without any. The Hessian does the same.
"""

# %%
# Three layers, singular values 10, 9.5 and 9, an aligned start of scale 0.01: five hundred trainings, one per
# learning rate, in one run.

import matplotlib.pyplot as plt
import torch

from lowdim.dynamics import dln

s, depth = [10.0, 9.5, 9.0], 3
rates = torch.linspace(0.0295, 0.0415, 500, dtype=torch.float64)
run = dln.DeepLinear(s, depth=depth).fit(rates, steps=6000, record=("values", "factors"), last=32)
critical = dln.critical_lrs(s, depth=depth)
critical.table()

# %%
# Every dot is a step among the last 32. The lines are the closed form of the orbit of period 2, drawn where
# it is stable; below ``2 / S_i`` it is the minimum.

fig, axes = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
x = rates[:, None].expand(-1, len(run.times))
for i, value in enumerate(s):
    axes[0].plot(x, run.values[..., i], ",", color=f"C{i}", alpha=0.6)
    orbit = dln.period2_orbit(value, depth=depth, lr=rates)
    for rho in (orbit.low, orbit.high):
        end = rho.where(orbit.stable, torch.nan) ** depth
        axes[0].plot(rates, end, color="k", linewidth=0.7)
    for ax in axes:
        ax.axvline(critical.onset[i], color=f"C{i}", linestyle="--", linewidth=0.8)
    axes[0].plot(
        [], [], ".", color=f"C{i}", label=f"singular value {value:g}, from 2 / S = {critical.onset[i]:.4f}"
    )
axes[0].set(ylabel="singular values of the product")
axes[0].legend(loc="lower left", fontsize=8)

# %%
# The Hessian at each of these states, all of it, from its blocks. Between the first and the second critical
# learning rate its largest eigenvalue is above and below ``2 / lr`` in turn.

top = dln.aligned_hessian_eigenvalues(run.factors, target=s)[..., :3]
for k, label in enumerate(("largest", "second", "third")):
    axes[1].plot(x, top[..., k], ",", color=f"C{k + 3}", alpha=0.6)
    axes[1].plot([], [], ".", color=f"C{k + 3}", label=f"{label} eigenvalue of the Hessian")
axes[1].plot(rates, 2 / rates, color="k", linewidth=1, label="2 / learning rate")
axes[1].set(xlabel="learning rate", ylabel="eigenvalue")
axes[1].legend(loc="upper left", fontsize=8)
plt.show()
