"""
A film from magnitudes
======================

Each frame of a film is measured less often than it has pixels, and only the
magnitudes are seen. No frame can be told by itself; all together can.
"""

# %%
# Forty frames of a ring that breathes in a changing light, 20 x 20 pixels.

import matplotlib.pyplot as plt
import numpy as np

from lowdim.phase import align, recover, simulate

t = np.linspace(0, 1, 40)
i, j = np.mgrid[-1:1:20j, -1:1:20j]
radius = 0.55 + 0.15 * np.sin(2 * np.pi * t)[:, None, None]
ring = np.exp(-(((np.hypot(i, j) - radius) / 0.18) ** 2))
film = ring + 0.5 + 0.3 * np.cos(2 * np.pi * t)[:, None, None] * i

# %%
# A random matrix of its own measures every frame, 100 times for 400 pixels; noise of 1 % is added to the
# magnitudes.

recording = simulate(film, kind="gaussian", measurements=0.25, noise=0.01, seed=0)

# %%
# Three recoveries: as one tensor of low Tucker rank, as frames in a space of three dimensions, and frame by
# frame. The last explains all magnitudes and is wrong: there are fewer of them than pixels. The tensor has
# 736 unknowns for 4,000 magnitudes, the space 1,320.

recovered = {
    "Tucker": recover(recording, ranks=(8, 8, 4)),
    "low rank": recover(recording, method="lowrank", ranks=3, n_init=1),
    "frame by frame": recover(recording, method="rwf"),
}
for name, result in recovered.items():
    error, left = result.report["error"]["total"], result.report["unexplained"]["total"]
    print(f"{name:<15} error {error:6.1%}, unexplained {left:6.1%}")

# %%
# Every frame is known up to its sign, which is chosen here to fit the true one.

shown = [0, 10, 20, 30]
fig, axes = plt.subplots(4, len(shown), figsize=(7, 7.4), layout="constrained")
films = {"true": film, **{name: align(result.frames, film, dim=(1, 2)) for name, result in recovered.items()}}
for row, (name, frames) in zip(axes, films.items(), strict=True):
    for ax, k in zip(row, shown, strict=True):
        ax.imshow(frames[k], cmap="gray", vmin=film.min(), vmax=film.max())
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
for ax, k in zip(axes[0], shown, strict=True):
    ax.set_title(f"frame {k}")
plt.show()
