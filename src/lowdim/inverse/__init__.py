"""inverse: images from measurements, with a diffusion model as the prior.

Problem: an image is seen through a known map that loses something (a blur, a mask, few projections), and
what is lost is filled in by what a diffusion model knows of images. Equation: ``y = A(x) + n``, n ~ N(0,
sigma^2 I), x likely under the prior. Input: y (B, ...), the operator, sigma and an unconditional diffusion
model; pixel models, latent ones and Gaussian mixtures alike. Output: one image (B, C, H, W) per measurement
and what it took: network calls, residual, seconds.

Sources: Li, Kwon, Liang, Alkhouri, Ravishankar, Qu, "DCDP" (arXiv 2403.06054); Song, Kwon, Zhang, Hu, Qu,
Shen, "ReSample", ICLR 2024 (arXiv 2307.08123); Chung et al., "DPS", ICLR 2023.
"""

from lowdim.inverse.consistency import Consistent, prox, pseudo_inverse
from lowdim.inverse.dcdp import DCDP
from lowdim.inverse.degradations import BlurDecimation, CircularBlur, Inpainting, Pooling, gaussian_kernel
from lowdim.inverse.dps import DPS
from lowdim.inverse.gmm import GMMPrior
from lowdim.inverse.operators import ForwardOperator, adjoint_error, as_operator
from lowdim.inverse.priors import CallablePrior, Prior
from lowdim.inverse.problem import Problem
from lowdim.inverse.result import Reconstruction
from lowdim.inverse.schedule import linear_alphas_cumprod

__all__ = [
    "DCDP",
    "DPS",
    "BlurDecimation",
    "CallablePrior",
    "CircularBlur",
    "Consistent",
    "ForwardOperator",
    "GMMPrior",
    "Inpainting",
    "Pooling",
    "Prior",
    "Problem",
    "Reconstruction",
    "adjoint_error",
    "as_operator",
    "gaussian_kernel",
    "linear_alphas_cumprod",
    "prox",
    "pseudo_inverse",
]
