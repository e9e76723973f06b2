"""Verifiable rewards: what a completion is worth, by rules that can be checked."""

from lowdim.policy.rewards.contract import Reward, checked, total_reward
from lowdim.policy.rewards.final import FinalAnswer, final_answer, gold_answer

__all__ = ["FinalAnswer", "Reward", "checked", "final_answer", "gold_answer", "total_reward"]
