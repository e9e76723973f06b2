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
from lowdim.inverse.evaluate import evaluate
from lowdim.inverse.folder import InverseResult
from lowdim.inverse.gmm import GMMPrior
from lowdim.inverse.latent import LatentPrior
from lowdim.inverse.latent_dcdp import LatentDCDP
from lowdim.inverse.latent_dps import LatentDPS
from lowdim.inverse.metrics import psnr, ssim
from lowdim.inverse.named import OPERATORS, named_operator
from lowdim.inverse.operators import ForwardOperator, adjoint_error, as_operator
from lowdim.inverse.pipeline import reconstruct
from lowdim.inverse.priors import CallablePrior, Prior
from lowdim.inverse.problem import Problem
from lowdim.inverse.resample_solver import ReSample
from lowdim.inverse.result import Reconstruction
from lowdim.inverse.schedule import linear_alphas_cumprod
from lowdim.inverse.sizes import fitted

__all__ = [
    "DCDP",
    "DPS",
    "OPERATORS",
    "BlurDecimation",
    "CallablePrior",
    "CircularBlur",
    "Consistent",
    "ForwardOperator",
    "GMMPrior",
    "Inpainting",
    "InverseResult",
    "LatentDCDP",
    "LatentDPS",
    "LatentPrior",
    "Pooling",
    "Prior",
    "Problem",
    "ReSample",
    "Reconstruction",
    "adjoint_error",
    "as_operator",
    "evaluate",
    "fitted",
    "gaussian_kernel",
    "linear_alphas_cumprod",
    "named_operator",
    "prox",
    "pseudo_inverse",
    "psnr",
    "reconstruct",
    "ssim",
]
