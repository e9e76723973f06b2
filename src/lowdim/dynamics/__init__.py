"""dynamics: watch a training run, and know what it can bear.

Problem: how sharp is the loss compared with what the learning rate can bear,
does the training oscillate, in how many directions, are the layers balanced,
what rank have weights, gradients and updates? Equation: gradient descent with
learning rate ``lr`` is stable along an eigenvector of the Hessian H while
``lambda_max(H) < 2 / lr``; ``lambda_max`` is the sharpness. Input: any PyTorch
module, a scalar loss on a fixed probe batch, the optimizer. Output: numbers per
step, to any logger.

`Monitor` is switched on in a training loop, or as a callback of transformers,
Lightning or accelerate. `sharpness` and `SharpnessTracker` measure the
curvature, `hessian` and `gauss_newton` are the maps behind it, `stability` is
what an optimizer can bear. `alternation`, `period`, `oscillation_rank` and
`EdgeDetector` see an oscillation without a Hessian. `read_run` reads what a
Monitor wrote. The model problem in closed form is in `dln` and `flatness`.

Sources: Ghosh, Kwon, Wang, Ravishankar, Qu, arXiv 2502.20531; Cohen et al.,
ICLR 2021 and arXiv 2207.14484.

Examples
--------
>>> import torch
>>> from lowdim.dynamics import sharpness
>>> layer = torch.nn.Linear(3, 1, bias=False)
>>> round(sharpness(layer, lambda: layer(torch.eye(3)).square().sum()).value, 4)
2.0
"""

from lowdim.dynamics import dln, flatness
from lowdim.dynamics.balance import balancing_gap
from lowdim.dynamics.curvature import Curvature, hessian
from lowdim.dynamics.gauss_newton import CrossEntropy, SplitLoss, gauss_newton
from lowdim.dynamics.monitor import Monitor
from lowdim.dynamics.oscillation import EdgeDetector, alternation, oscillation_rank, period
from lowdim.dynamics.parameters import FlatParameters
from lowdim.dynamics.rate import RateAdvice, recommend_rate
from lowdim.dynamics.runfile import DynamicsRun, read_run
from lowdim.dynamics.thresholds import Stability, stability
from lowdim.dynamics.tracker import Sharpness, SharpnessTracker, sharpness

__all__ = [
    "CrossEntropy",
    "Curvature",
    "DynamicsRun",
    "EdgeDetector",
    "FlatParameters",
    "Monitor",
    "RateAdvice",
    "Sharpness",
    "SharpnessTracker",
    "SplitLoss",
    "Stability",
    "alternation",
    "balancing_gap",
    "dln",
    "flatness",
    "gauss_newton",
    "hessian",
    "oscillation_rank",
    "period",
    "read_run",
    "recommend_rate",
    "sharpness",
    "stability",
]
