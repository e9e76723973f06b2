"""dln: deep linear networks, the model problem of training at the edge of stability.

Problem: what does gradient descent do with a learning rate that the minimum
cannot bear? Equation: ``f(W_1, ..., W_L) = 1/2 ||W_L ... W_1 - M||_F^2``, for which
spectra, critical learning rates, oscillations and their stability have closed
forms. Input: the matrix M or its singular values, the depth, learning rates.
Output: these predictions, and trainings of many networks at once to check them.

`critical_lrs`, `oscillation_rank`: from which learning rate on what oscillates.
`period2_orbit`, `stability_limit`, `floquet`: how far, and whether it lasts.
`hessian_eigenvalues`, `aligned_hessian_eigenvalues`, `balanced_sharpness`: the
spectrum; `sharpness`, `trace`: at any minimum. `balancing_gap` and its kin: how
equally the layers share the product. `DeepLinear`: the training.

Sources: Ghosh, Kwon, Wang, Ravishankar, Qu, "Learning Dynamics of Deep Linear
Networks Beyond the Edge of Stability", arXiv 2502.20531; Kamber, Parhi, arXiv
2509.25783; what is ours says so where it stands.

Examples
--------
>>> from lowdim.dynamics import dln
>>> dln.critical_lrs([10.0, 9.5, 9.0], depth=3).onset
tensor([0.0309, 0.0331, 0.0356], dtype=torch.float64)
"""

from lowdim.dynamics.dln.balance import (
    balance_contraction,
    balancing_gap,
    balancing_matrices,
    balancing_step,
)
from lowdim.dynamics.dln.floquet import Floquet, floquet
from lowdim.dynamics.dln.minimum import balanced_layers, product, sharpness, trace
from lowdim.dynamics.dln.network import DeepLinear
from lowdim.dynamics.dln.orbit import Orbit, period2_orbit, stability_limit
from lowdim.dynamics.dln.rates import CriticalLRs, critical_lrs, oscillation_rank
from lowdim.dynamics.dln.spectrum import (
    aligned_hessian_eigenvalues,
    balanced_sharpness,
    hessian_eigenvalues,
)
from lowdim.dynamics.dln.trajectory import Trajectory

__all__ = [
    "CriticalLRs",
    "DeepLinear",
    "Floquet",
    "Orbit",
    "Trajectory",
    "aligned_hessian_eigenvalues",
    "balance_contraction",
    "balanced_layers",
    "balanced_sharpness",
    "balancing_gap",
    "balancing_matrices",
    "balancing_step",
    "critical_lrs",
    "floquet",
    "hessian_eigenvalues",
    "oscillation_rank",
    "period2_orbit",
    "product",
    "sharpness",
    "stability_limit",
    "trace",
]
