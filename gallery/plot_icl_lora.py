"""
What a low-rank adapter repairs
===============================

Linear attention that was trained on tasks in r = 5 of 20 dimensions is
adapted to tasks at an angle. An update of rank r moves the subspace and
removes nearly all of what the shift costs.
"""

# %%
# The best update of every rank is a closed form. Adam on both of its factors finds it.

import matplotlib.pyplot as plt

from lowdim.incontext import SubspaceTasks, best_low_rank_update, optimal_weights, train_low_rank_update

tasks = SubspaceTasks(20, r=5, noise=0.1, seed=0)
ranks = range(13)

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for angle, n, color in ((45, 2000, "C0"), (90, 2000, "C1"), (45, 100, "C2")):
    W = optimal_weights(tasks.covariance, n=n, noise=0.1)
    where = {"covariance": tasks.rotated(angle).covariance, "n": n, "noise": 0.1}
    risks = [best_low_rank_update(W, rank=rank, **where).risk for rank in ranks]
    ax.semilogy(ranks, risks, "-", color=color, label=f"{angle} degrees, {n} examples")
    found = [train_low_rank_update(W, rank=rank, steps=400, **where).risk for rank in (1, 3, 5)]
    ax.semilogy((1, 3, 5), found, "o", color=color)
ax.axvline(5, color="gray", lw=0.8, ls=":")
ax.axvline(10, color="gray", lw=0.8, ls=":")
ax.set(xlabel="rank of the update (dotted: r and 2 r)", ylabel="risk on the new tasks")
ax.legend()
plt.show()
