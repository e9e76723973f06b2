"""Verifiable rewards: what a completion is worth, by rules that can be checked.

Every reward follows TRL's contract ``reward(prompts, completions, completion_ids, **columns) -> list of float
or None``, takes completions as text or as messages, has a name, and can be pickled.
"""

from lowdim.policy.rewards.answer import AnswerReward, answer_reward, check_gold
from lowdim.policy.rewards.contract import CheckedReward, Reward, TotalReward, checked, total_reward
from lowdim.policy.rewards.final import FinalAnswer, final_answer, gold_answer
from lowdim.policy.rewards.form import OverlongPenalty, TagReward, overlong_penalty, tag_reward
from lowdim.policy.rewards.named import NamedReward, named_reward
from lowdim.policy.rewards.numbers import Quantity, read_number
from lowdim.policy.rewards.pool import KillablePool

__all__ = [
    "AnswerReward",
    "CheckedReward",
    "FinalAnswer",
    "KillablePool",
    "NamedReward",
    "OverlongPenalty",
    "Quantity",
    "Reward",
    "TagReward",
    "TotalReward",
    "answer_reward",
    "check_gold",
    "checked",
    "final_answer",
    "gold_answer",
    "named_reward",
    "overlong_penalty",
    "read_number",
    "tag_reward",
    "total_reward",
]
