"""policy: a large and a small language-model policy, trained at once from the small one's rollouts.

Problem: reinforcement learning with checkable rewards spends most of its time letting a large model write;
here only a small one writes. Equation: the small policy phi maximizes ``r + (alpha/N) sum_t (log pi_theta -
log pi_phi)`` on its own rollouts; the large policy theta maximizes ``r`` on the same rollouts, weighted by
``pi_theta / pi_phi`` and clipped. Input: two causal language models with one tokenizer (or one and its
compressed copy), prompts, reward functions. Output: both models, trained; what it cost; what was learned.

Source: Kwon, Jain, Sun, Suresh, Kumar, "CoDistill-GRPO: A Co-Distillation Recipe for Efficient Group
Relative Policy Optimization", 2026; called Hybrid-GRPO here.
"""

from typing import TYPE_CHECKING, Any

from lowdim.policy.advantages import group_advantages
from lowdim.policy.compaction import Compaction, compact
from lowdim.policy.data import Prompts, check_disjoint, read_prompts, split_prompts
from lowdim.policy.diagnostics import (
    GroupShares,
    PooledSampleSize,
    effective_sample_size,
    group_shares,
    kl_per_token,
    log_weights,
)
from lowdim.policy.effective import distillation_loss, distillation_term, effective_reward
from lowdim.policy.evaluate import evaluate_policy
from lowdim.policy.evaluation import Evaluation
from lowdim.policy.forgetting import ForgettingGuard
from lowdim.policy.guards import Guards
from lowdim.policy.ledger import CostLedger
from lowdim.policy.memory import MemoryPlan, memory_plans
from lowdim.policy.pipeline import codistill
from lowdim.policy.plan import plan
from lowdim.policy.planned import Plan
from lowdim.policy.result import HybridGRPOResult
from lowdim.policy.selection import select_extremes, select_rows
from lowdim.policy.size import ModelSize
from lowdim.policy.stages import StagedRollouts, expected_rollouts
from lowdim.policy.surrogate import RatioStatistics, clipped_surrogate, truncated_surrogate
from lowdim.policy.templates import fill_template

if TYPE_CHECKING:
    from lowdim.policy.trl import HybridGRPOConfig, HybridGRPOTrainer
from lowdim.policy.rewards import (
    Quantity,
    answer_reward,
    check_gold,
    checked,
    final_answer,
    named_reward,
    overlong_penalty,
    read_number,
    tag_reward,
    total_reward,
)

__all__ = [
    "Compaction",
    "CostLedger",
    "Evaluation",
    "ForgettingGuard",
    "GroupShares",
    "Guards",
    "HybridGRPOConfig",
    "HybridGRPOResult",
    "HybridGRPOTrainer",
    "MemoryPlan",
    "ModelSize",
    "Plan",
    "PooledSampleSize",
    "Prompts",
    "Quantity",
    "RatioStatistics",
    "StagedRollouts",
    "answer_reward",
    "check_disjoint",
    "check_gold",
    "checked",
    "clipped_surrogate",
    "codistill",
    "compact",
    "distillation_loss",
    "distillation_term",
    "effective_reward",
    "effective_sample_size",
    "evaluate_policy",
    "expected_rollouts",
    "fill_template",
    "final_answer",
    "group_advantages",
    "group_shares",
    "kl_per_token",
    "log_weights",
    "memory_plans",
    "named_reward",
    "overlong_penalty",
    "plan",
    "read_number",
    "read_prompts",
    "select_extremes",
    "select_rows",
    "split_prompts",
    "tag_reward",
    "total_reward",
    "truncated_surrogate",
]


def __getattr__(name: str) -> Any:
    # TRL is optional, and takes seconds to import.
    if name not in ("HybridGRPOConfig", "HybridGRPOTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lowdim.policy import trl

    return getattr(trl, name)
