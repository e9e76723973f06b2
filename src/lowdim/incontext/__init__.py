"""incontext: what a model learns from examples in its prompt, and what it loses when tasks shift.

Problem: models are trained on prompts whose tasks lie in one or several subspaces, and tested on tasks
from subspaces that are turned by an angle. Equation: ``y_i = b.x_i + noise`` with ``b = U z``, tested at
``U cos t + V sin t``; linear attention predicts ``x_q^T W X^T y / n``, and its best W and every risk are
closed forms. Input: sizes, or bases (k, d, r). Output: risks over angles and context lengths beside theory
and baselines, and by the rank of an adapter.

`study` does it all. `SubspaceTasks` draws prompts, `optimal_weights` and `risk` are the closed forms,
`LinearAttention` and `PromptTransformer` are trained by `train` and measured by `evaluate`, and
`best_low_rank_update` says what an adapter of a rank can repair.

Sources: Kwon, Xu, Yaras, Balzano, Qu, "Out-of-distribution generalization of in-context learning: a
low-dimensional subspace perspective", AISTATS 2026 (arXiv 2505.14808); Garg, Tsipras, Liang, Valiant, "What
can transformers learn in-context?", NeurIPS 2022.
"""

from lowdim.incontext.adapters import LowRankUpdate, best_low_rank_update, train_low_rank_update
from lowdim.incontext.attention import LinearAttention
from lowdim.incontext.evaluate import evaluate
from lowdim.incontext.families import Linear, RandomFeatures, ReluNetwork, SingleIndex
from lowdim.incontext.optimal import moment_covariance, optimal_weights, risk, risk_vs_angle
from lowdim.incontext.pipeline import study
from lowdim.incontext.result import StudyResult
from lowdim.incontext.statistics import Moments, sample_gram, sample_moments
from lowdim.incontext.tasks import Prompt, SubspaceTasks
from lowdim.incontext.train import train
from lowdim.incontext.transformer import PromptTransformer

__all__ = [
    "Linear",
    "LinearAttention",
    "LowRankUpdate",
    "Moments",
    "Prompt",
    "PromptTransformer",
    "RandomFeatures",
    "ReluNetwork",
    "SingleIndex",
    "StudyResult",
    "SubspaceTasks",
    "best_low_rank_update",
    "evaluate",
    "moment_covariance",
    "optimal_weights",
    "risk",
    "risk_vs_angle",
    "sample_gram",
    "sample_moments",
    "study",
    "train",
    "train_low_rank_update",
]
