"""Recipe: every switch of a training, and the named ones that claims compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowdim.errors import DataError
from lowdim.policy.advantages import Scale
from lowdim.policy.effective import Estimator
from lowdim.policy.hints import HintRatio
from lowdim.policy.selection import Selection

__all__ = ["RECIPES", "Recipe"]

LargeRatio = Literal["token", "sequence", "truncated"]


@dataclass(frozen=True)
class Recipe:
    """What one step of a training does; the defaults are Hybrid-GRPO as in the paper.

    Parameters
    ----------
    prompts : int
        Q, prompts of a step.
    candidates, keep_rollouts : int
        M rollouts of each prompt, of which G are trained on.
    selection : {"both", "top", "max_variance", "random"}
    alpha : float
        Weight of the distillation.
    alpha_schedule : {"constant", "linear", "closeness"}
        "linear" lets alpha fall to 0 over the run, "closeness" with the divergence of the two policies, as a
        share of that of the first steps (ours).
    kd_estimator : {"k1", "k2", "k3"}
    kd_place : {"reward", "loss"}
    train_large : bool
        False freezes the large policy, as KDRL does.
    hint_tokens, hint_steps : int
        T tokens by the large policy in front of each rollout, for so many steps.
    hint_ratio : {"small", "large", "ignore"}
    lr : float
        Learning rate of AdamW.
    large_lr : float, optional
        That of the large policy; the same by default.
    clip : float or pair of float
    large_clip : float or pair of float, optional
        That of the large policy; the same by default.
    ratio_cap : float, optional
        Bound on the large policy's ratios (ours).
    large_ratio : {"token", "sequence", "truncated"}
        "token" as in the paper; "sequence" takes a rollout's geometric mean; "truncated" weights the plain
        policy gradient by ``min(w, ratio_cap)`` and clips nothing (ours).
    large_rows : {"kept", "reward", "all"}
        Rows of the large policy's update: the small one's (paper), G selected by the plain reward, or all M.
    scale_rewards, large_scale_rewards : {"none", "group", "batch"}

    Raises
    ------
    DataError
        If a truncated ratio has no cap.

    Examples
    --------
    >>> Recipe().candidates, RECIPES["kdrl"].train_large
    (14, False)
    """

    prompts: int = 16
    candidates: int = 14
    keep_rollouts: int = 8
    selection: Selection = "both"
    alpha: float = 1.0
    alpha_schedule: Literal["constant", "linear", "closeness"] = "constant"
    kd_estimator: Estimator = "k1"
    kd_place: Literal["reward", "loss"] = "reward"
    train_large: bool = True
    hint_tokens: int = 0
    hint_steps: int = 0
    hint_ratio: HintRatio = "small"
    lr: float = 3e-4
    large_lr: float | None = None
    clip: float | tuple[float, float] = 0.2
    large_clip: float | tuple[float, float] | None = None
    ratio_cap: float | None = None
    large_ratio: LargeRatio = "token"
    large_rows: Literal["kept", "reward", "all"] = "kept"
    scale_rewards: Scale = "none"
    large_scale_rewards: Scale = "none"

    def __post_init__(self) -> None:
        if self.large_ratio == "truncated" and self.ratio_cap is None:
            raise DataError("Recipe: large_ratio='truncated' needs ratio_cap, such as 2.")

    @property
    def needs_scores(self) -> bool:
        """Whether the large policy's log-probabilities of the rollouts are needed."""
        return self.alpha > 0 or self.hint_tokens > 0


RECIPES: dict[str, Recipe] = {
    "grpo": Recipe(candidates=8, alpha=0.0),
    "grpo-14": Recipe(keep_rollouts=14, alpha=0.0),
    "pods": Recipe(alpha=0.0),
    "kdrl": Recipe(train_large=False),
    "hybrid": Recipe(),
    "no distillation": Recipe(alpha=0.0),
    "no selection": Recipe(candidates=8),
    "neither": Recipe(candidates=8, alpha=0.0),
    "k3": Recipe(kd_estimator="k3"),
    "alpha 2": Recipe(alpha=2.0),
    "distillation in the loss": Recipe(kd_place="loss", kd_estimator="k2"),
    "hints at first": Recipe(hint_tokens=1, hint_steps=25),
    "hints always": Recipe(hint_tokens=1, hint_steps=10**9),
    "ratio cap 3": Recipe(ratio_cap=3.0),
    "improved": Recipe(large_ratio="truncated", ratio_cap=2.0, large_lr=1.5e-4),
}
"""Recipes by name. "grpo", "grpo-14" and "pods" train one policy; continued training is "grpo", too."""
