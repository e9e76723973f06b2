"""
A transformer and the diversity of its tasks
============================================

A GPT-2 of 4 layers learns linear regression from examples in its prompt, on
tasks of 1, 2, 4 or 8 orthogonal lines in 8 dimensions. Does it work on lines
that it has never seen?
"""

# %%
# The risks are those of the claim ``incontext.diversity``: three seeds, trainings of about two minutes of one
# core each. A risk of 1 is that of always predicting 0.

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

claim = json.loads(Path("..", "docs", "claims", "incontext.diversity.json").read_text())
seeds = [details["runs"] for details in claim["details"]]
angles, counts = claim["details"][0]["angles"], claim["details"][0]["counts"]

# %%
# Left: a training line is turned into a random direction. Few lines span little of it, and the model fails
# beyond predicting 0. Right: lines drawn at random, over the number of training lines; dots are seeds, lines
# their means, and dashes the best linear attention for the same training lines.

fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
for i, k in enumerate(counts):
    curves = np.array([runs[i]["anywhere"] for runs in seeds])
    left.plot(angles, curves.mean(0), color=f"C{i}", label=f"{k} line{'s' * (k > 1)}")
    left.plot(angles, curves.T, ".", color=f"C{i}", ms=4)
left.axhline(1, color="gray", lw=0.8)
left.set(xlabel="angle from a training line, degrees", ylabel="risk", xticks=[0, 30, 60, 90])
left.legend()

for name, label, color in (("new", "random lines", "C0"), ("trained", "training lines", "C1")):
    risks = np.array([[run[name] for run in runs] for runs in seeds])
    linear = np.array([[run[f"{name}_linear"] for run in runs] for runs in seeds])
    right.plot(counts, risks.mean(0), color=color, label=label)
    right.plot(counts, risks.T, "o", color=color, ms=4)
    right.plot(counts, linear.mean(0), "--", color=color, lw=1)
right.axhline(1, color="gray", lw=0.8)
right.set(xscale="log", yscale="log", xlabel="training lines", ylabel="risk", xticks=counts)
right.set_xticks(counts, [str(k) for k in counts])
right.minorticks_off()
right.legend()
plt.show()
