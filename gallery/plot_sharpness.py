"""
Sharpness of a real network
===========================

A small network learns digits by gradient descent on all images at once. How
sharp does its loss become, compared with what the learning rate can bear?
"""

# %%
# A tanh network 64-64-64-10 and half the squared error, as in many studies of the edge of stability. The
# Monitor looks at the largest eigenvalue of the Hessian every 25 steps, and at the direction of every step.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from lowdim.dynamics.monitor import Monitor
from lowdim.dynamics.sinks import Memory

images, digits = load_digits(return_X_y=True)
lr, steps, every = 0.2, 2000, 25


def watch(samples):
    x = torch.as_tensor(images[:samples] / 16 - 0.3, dtype=torch.float32)
    y = nn.functional.one_hot(torch.as_tensor(digits[:samples]), 10).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def loss_fn():
        return 0.5 * (model(x) - y).square().sum(1).mean()

    memory, probes = Memory(), ("sharpness", "oscillation")
    with Monitor(model, loss_fn, optimizer=optimizer, every=every, probes=probes, sink=memory) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_fn()
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)
    return memory.table()


runs = {f"{samples} images": watch(samples) for samples in (300, 5)}

# %%
# With 300 images the sharpness rises until it is 2 / lr, and hovers there: from then on each step undoes most
# of the one before (alternation near 1), and the loss falls with ups and downs. Five images are a simple
# task: the network has learned them long before its loss is that sharp, and the steps go straight on until
# nothing moves.

fig, axes = plt.subplots(3, 1, figsize=(7, 7), sharex=True, layout="constrained")
for name, table in runs.items():
    axes[0].semilogy(table.index, table["dyn/loss"], label=name)
    axes[1].plot(table.index, table["dyn/sharpness_ratio"], label=name)
    axes[2].plot(table.index, table["dyn/alternation"], label=name)
axes[0].set(ylabel="loss", ylim=(1e-6, None))
axes[1].axhline(1, color="gray", linestyle="--")
axes[1].set(ylabel="sharpness / (2 / lr)", ylim=(0, None))
axes[2].set(ylabel="alternation", xlabel="step", ylim=(-1.1, 1.1))
axes[0].legend()
plt.show()
