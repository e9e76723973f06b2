"""
What a shift of tasks costs
===========================

Linear attention that was trained on tasks in one subspace fails on tasks in a
subspace that is turned, and more examples do not help. Trained on two
subspaces, it is equally good at every angle between them.
"""

# %%
# Tasks have their weights in 5 of 20 dimensions. The best weights of linear attention and every risk are
# closed forms; the dots are measured on prompts.

import matplotlib.pyplot as plt
import numpy as np

from lowdim.incontext import LinearAttention, SubspaceTasks, evaluate, optimal_weights, risk

two = SubspaceTasks(20, r=5, subspaces=2, noise=0.1, seed=0)
V = two.direction()
one = two.on(two.bases[:1])
angles = np.linspace(0, 90, 46)

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for tasks, label, color in ((one, "one subspace", "C0"), (two, "two subspaces", "C1")):
    for n, line in ((100, "-"), (1000, "--")):
        W = optimal_weights(tasks.covariance, n=n, noise=0.1)
        risks = [risk(W, covariance=tasks.rotated(t, toward=V).covariance, n=n, noise=0.1) for t in angles]
        ax.plot(angles, risks, line, color=color, label=f"{label}, {n} examples")
    model = LinearAttention(20).double()
    model.load_state_dict({"W": optimal_weights(tasks.covariance, n=100, noise=0.1)})
    table = evaluate(model, tasks, angles_deg=range(0, 91, 15), context_lengths=[100], toward=V, prompts=5000)
    measured = table[table["predictor"] == "model"]
    ax.errorbar(measured["angle_deg"], measured["risk"], 2 * measured["se"], fmt="o", color=color)
ax.axhline(5, color="gray", lw=0.8)
ax.text(1, 5.06, "always 0", color="gray", fontsize=9)
ax.set(xlabel="angle between training and test, degrees", ylabel="risk", ylim=(-0.2, 7))
ax.legend(ncols=2, loc="upper left")
plt.show()
