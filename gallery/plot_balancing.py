"""
Layers become balanced beyond the edge of stability
===================================================

Gradient flow keeps the difference between the layers of a network for ever;
gradient descent with a learning rate beyond the edge takes it away.
"""

# %%
# Two layers of one number each with product 5, from 1.5 and 2.25. The edge of stability is at 0.2.

import matplotlib.pyplot as plt

from lowdim.dynamics import dln

rates = [0.05, 0.15, 0.19, 0.1997, 0.205, 0.21, 0.23]
net = dln.DeepLinear([5.0], depth=2, diagonal=True, init=[[1.5], [2.25]])
run = net.fit(rates, steps=400, record=("gap", "values"))

fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
colors = plt.colormaps["viridis"]([0.0, 0.15, 0.3, 0.45, 0.7, 0.85, 1.0])
for k, lr in enumerate(rates):
    axes[0].semilogy(run.times, run.gap[k].clamp_min(1e-16), color=colors[k], label=f"{lr:g}")
axes[0].set(xlabel="step", ylabel="balancing gap $|d_2^2 - d_1^2|$", ylim=(1e-13, 10))
axes[0].legend(title="learning rate", fontsize=8)

# %%
# Each step multiplies the gap by ``1 - lr^2 (pi - s)^2``, with pi the product of the layers: as long as it
# oscillates around s, the gap goes on shrinking.

for k in (1, 3, 5):
    axes[1].plot(run.times[:40], run.values[k, :40, 0], color=colors[k], label=f"{rates[k]:g}")
axes[1].axhline(5, color="k", linewidth=0.5)
axes[1].set(xlabel="step", ylabel="product of the layers")
axes[1].legend(title="learning rate", fontsize=8)
plt.show()
