"""Arithmetic: a world in which co-distillation can be measured in seconds, exactly.

Problem: what does a change of the algorithm do to what is learned? World: sums of two numbers in characters
(`Addition`), decoders of 60,213 and 235,613 weights (`small_decoder`, `large_decoder`) that a supervised
warm-up on noisy answers leaves right now and then (`warm_up`), and a bare loop of every method (`train`, with
a `Recipe`). A sum has one right completion, so accuracy at temperature 1 is known without sampling noise
(`sampled_accuracy`). A small policy can also be a factorized copy of the large one (`compressed`, `heal`).
The loop uses the equations of the room and nothing of TRL.

Source: section "learning" of the acceptance experiments in our notes on Kwon et al., "CoDistill-GRPO", 2026.
"""

from lowdim.policy.arithmetic.addition import CHARACTERS, END, Addition
from lowdim.policy.arithmetic.copies import compressed, heal
from lowdim.policy.arithmetic.decoder import Decoder, Rollouts, completion_mask, large_decoder, small_decoder
from lowdim.policy.arithmetic.measure import Closeness, closeness, greedy_accuracy, sampled_accuracy
from lowdim.policy.arithmetic.recipe import RECIPES, Recipe
from lowdim.policy.arithmetic.train import Learning, train, weights_of
from lowdim.policy.arithmetic.warm import warm_up

__all__ = [
    "CHARACTERS",
    "END",
    "RECIPES",
    "Addition",
    "Closeness",
    "Decoder",
    "Learning",
    "Recipe",
    "Rollouts",
    "closeness",
    "completion_mask",
    "compressed",
    "greedy_accuracy",
    "heal",
    "large_decoder",
    "sampled_accuracy",
    "small_decoder",
    "train",
    "warm_up",
    "weights_of",
]
