"""
Following a subspace that turns
===============================

A planted subspace turns by a right angle while frames arrive of which half is
missing. Who knows best where it is?
"""

# %%
# Two hundred frames of 40 sensors near a plane that turns along a geodesic; half of all entries are missing.

import matplotlib.pyplot as plt
import numpy as np

from lowdim.track import GeodesicSubspace, Grouse, StaticSubspace

rng = np.random.default_rng(0)
frames, sensors, k = 200, 40, 2
t = np.linspace(0, 1, frames)
H, Y = np.split(np.linalg.qr(rng.normal(size=(sensors, 2 * k)))[0], 2, axis=1)
angles = np.array([np.pi / 2, np.pi / 4])
planted = H * np.cos(angles * t[:, None])[:, None] + Y * np.sin(angles * t[:, None])[:, None]
truth = np.einsum("tdk,tk->td", planted, rng.normal(size=(frames, k)))
seen = rng.random(truth.shape) < 0.5
X = np.where(seen, truth + 0.02 * rng.normal(size=truth.shape), np.nan)

# %%
# One subspace at rest, a streaming tracker that looks at no later frame, and a geodesic through all frames.

bases = {
    "at rest": StaticSubspace(k).fit(X).basis(),
    "GROUSE, frame by frame": Grouse(k, random_state=0).track(X).bases,
    "geodesic": GeodesicSubspace(k).fit(X, t=t).basis(),
}

# %%
# The error is the sine of the largest angle between the planted plane and what is known of it. The subspace
# at rest is right in the middle only; the tracker learns the plane and then follows at a distance that the
# noise and the gaps set; the geodesic uses all frames for every moment.


def largest_sine(U, V):
    return np.linalg.norm(V - U @ (np.swapaxes(U, 1, 2) @ V), ord=2, axis=(1, 2))


fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, basis in bases.items():
    ax.semilogy(t, largest_sine(basis, planted), label=name)
ax.set(xlabel="time", ylabel="sine of the largest angle to the planted plane")
ax.legend()
plt.show()
