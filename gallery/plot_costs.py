"""
How time grows with size
========================

Phase retrieval, tensor regression and subspace tracking take time that grows
no faster than the data: lines of slope 1 or less on log-log axes.
"""

# %%
# The times are those that ``python -m benchmarks costs`` has measured: a fixed number of iterations while one
# size grows and the others stay.

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

results = Path("..", "benchmarks", "results", "costs.json")
rows = json.loads(results.read_text())["rows"]

# %%
# The number beside each line is its slope, the fitted exponent.

systems = list(dict.fromkeys(row["case"].partition(",")[0] for row in rows))
fig, axes = plt.subplots(1, len(systems), figsize=(9, 3.4), sharey=True, layout="constrained")
for ax, system in zip(axes, systems, strict=True):
    for row in (row for row in rows if row["case"].startswith(system)):
        sizes, seconds = np.array(row["figures"]["sizes"]), np.array(row["figures"]["seconds"])
        size = row["case"].partition(", ")[2]
        ax.loglog(sizes, 1e3 * seconds, "o-", label=f"{size}: {row['figures']['exponent']:.2f}")
    ax.set(title=system, xlabel="size")
    ax.legend(fontsize=8)
axes[0].set_ylabel("ms")
plt.show()
