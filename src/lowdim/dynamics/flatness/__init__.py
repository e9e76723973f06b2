"""flatness: how flat a minimum is, beside the flattest one of the same function.

Problem: minima of equal loss differ in sharpness, and in how well they
generalize; which one does training find? Equation: at a minimum of linear layers
the nonzero Hessian eigenvalues are those of ``X -> sum_l A_l X B_l``, and its
sharpness is at least ``S_1 = L s_1^(2 - 2/L)``, that of balanced layers. Input:
the layers, or a target to train on. Output: sharpness, trace, excess over the
flattest minimum, balancing gap.

`at_minimum` measures linear layers, `estimate` any network, `sweep_init` trains from several initial scales,
`reparameterize` and `minimize_trace` move among weights with the same product,
`smallest_trace` is what the latter ends at.

Sources: Kwon, Ding, Balzano, Qu, "On the Relationship Between Small
Initialization and Flatness in Deep Networks", 2024 (the question); Kamber, Parhi,
arXiv 2509.25783; Ding et al., arXiv 2203.03756; the rest is derived here.

Examples
--------
>>> from lowdim.dynamics import dln, flatness
>>> found = flatness.at_minimum(dln.balanced_layers([4.0, 1.0], depth=2))
>>> float(found.sharpness), float(found.trace)
(8.0, 20.0)
"""

from lowdim.dynamics.flatness.estimate import FlatnessEstimate, estimate
from lowdim.dynamics.flatness.fiber import minimize_trace, reparameterize, smallest_trace
from lowdim.dynamics.flatness.measure import Flatness, at_minimum
from lowdim.dynamics.flatness.sweep import InitSweep, sweep_init

__all__ = [
    "Flatness",
    "FlatnessEstimate",
    "InitSweep",
    "at_minimum",
    "estimate",
    "minimize_trace",
    "reparameterize",
    "smallest_trace",
    "sweep_init",
]
