"""Train: one policy by GRPO, or two by Hybrid-GRPO, in a bare loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra.seeds import generator
from lowdim.errors import DataError
from lowdim.policy.advantages import group_advantages
from lowdim.policy.arithmetic.addition import Addition
from lowdim.policy.arithmetic.decoder import Decoder
from lowdim.policy.arithmetic.recipe import Recipe
from lowdim.policy.diagnostics import effective_sample_size, group_shares, log_weights
from lowdim.policy.effective import distillation_loss, effective_reward
from lowdim.policy.hints import sampling_log_probs
from lowdim.policy.selection import select_rows
from lowdim.policy.surrogate import clipped_surrogate, truncated_surrogate

__all__ = ["Learning", "train", "weights_of"]


@dataclass
class Learning:
    """What a training did and cost.

    Parameters
    ----------
    generated, scored, updated : float
        Work in floating-point operations of the models: 2 per weight and token that is generated or scored,
        6 per weight and token that is trained on.
    reward : list of float
        Mean reward of the rollouts of each step.
    all_zero : list of float
        Share of prompts none of whose rollouts was right, each step.
    log_weight : list of Tensor of shape (rows,)
        Logarithms of the large policy's weights of the rollouts, each step; empty without scores.
    largest_ratio : float
        Largest ratio of a token in an update of the large policy.
    seconds : float
        Processor time.

    Examples
    --------
    >>> Learning(generated=2e9, reward=[0.2, 0.4]).steps
    2
    """

    generated: float = 0.0
    scored: float = 0.0
    updated: float = 0.0
    reward: list[float] = field(default_factory=list)
    all_zero: list[float] = field(default_factory=list)
    log_weight: list[Tensor] = field(default_factory=list)
    largest_ratio: float = 1.0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps that were taken."""
        return len(self.reward)

    @property
    def learning_cliff(self) -> float:
        """Share of prompts none of whose rollouts was right, over the whole run."""
        return sum(self.all_zero) / max(len(self.all_zero), 1)

    def ess(self, *, last: bool, rows: int = 512) -> float:
        """Effective sample size of the large policy's ratios, over about so many rows of one end.

        Parameters
        ----------
        last : bool
            The end of the run, else its beginning.
        rows : int

        Returns
        -------
        float
            NaN without scores.
        """
        if not self.log_weight:
            return math.nan
        several = math.ceil(rows / len(self.log_weight[0]))
        return effective_sample_size(
            torch.cat(self.log_weight[-several:] if last else self.log_weight[:several])
        )


def train(
    small: Decoder,
    task: Addition,
    *,
    recipe: Recipe,
    large: Decoder | None = None,
    steps: int = 300,
    seed: int = 0,
    callback: Callable[[int, Learning], None] | None = None,
) -> Learning:
    """Train in place, step by step as section 2 of the paper has it.

    Parameters
    ----------
    small : Decoder
        The policy that generates.
    task : Addition
    recipe : Recipe
    large : Decoder, optional
        The policy that learns from the small one's rollouts, and teaches it.
    steps : int
    seed : int
        Of prompts, rollouts and ties.
    callback : callable, optional
        Called after each step with the number of steps done and what they did so far.

    Returns
    -------
    Learning

    Raises
    ------
    DataError
        If the recipe distils from a large policy and there is none.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, algorithm 1, equations 7, 8 and 15.

    Examples
    --------
    >>> from lowdim.policy.arithmetic import RECIPES, large_decoder, small_decoder
    >>> small, large = small_decoder(seed=0), large_decoder(seed=1)
    >>> learning = train(small, Addition(seed=0), recipe=RECIPES["hybrid"], large=large, steps=2)
    >>> learning.steps, len(learning.log_weight)
    (2, 2)
    """
    if large is None and recipe.needs_scores:
        raise DataError("train: this recipe distils from a large policy. Give large=..., or alpha=0.")
    Q, M, G, N = recipe.prompts, recipe.candidates, recipe.keep_rollouts, task.max_length
    source, clock, out = generator(seed), time.process_time(), Learning()
    optimizer = _optimizer(small, recipe.lr)
    large_optimizer = None
    if large is not None and recipe.train_large:
        large_optimizer = _optimizer(large, recipe.large_lr or recipe.lr)
    anneal = _Anneal(recipe)
    size, large_size = weights_of(small), 0 if large is None else weights_of(large)

    for step in range(steps):
        # 1. Q prompts, M rollouts of each: 2. hints by the large policy, 3. the rest by the small one.
        which = task.train[torch.randint(len(task.train), (Q,), generator=source)]
        prompts, hint, T = task.prompt(which), None, 0
        if large is not None and step < recipe.hint_steps:
            T = recipe.hint_tokens
            hint = large.sample(prompts, group=M, max_length=T, seed=source).tokens
            out.generated += 2 * large_size * T * Q * M
        tokens, mask, logp_small = small.sample(prompts, group=M, max_length=N, start=hint, seed=source)
        owner = torch.arange(Q).repeat_interleave(M)
        written = int(mask.sum())
        out.generated += 2 * size * (written - T * Q * M)

        # 4. Rewards.
        reward = task.reward(which.repeat_interleave(M), tokens)
        out.reward.append(float(reward.mean()))
        out.all_zero.append(group_shares(reward, group=M).groups_all_zero)

        # 5. Scores. The small policy's came with its rollouts.
        logp_large = logp_small
        if large is not None and recipe.needs_scores:
            with torch.no_grad():
                logp_large = large.logp(prompts, tokens, mask, owner=owner)
            out.scored += 2 * large_size * written
            out.log_weight.append(log_weights(logp_large, logp_small, mask))

        # 6. Effective reward, 7. the rows to train on, 8. advantages over these rows.
        alpha = anneal(step / steps, out.log_weight)
        effective = reward
        if recipe.kd_place == "reward":
            effective = effective_reward(
                *(reward, logp_large, logp_small, mask),
                alpha=alpha,
                max_length=N,
                estimator=recipe.kd_estimator,
            )
        choose: dict[str, Any] = {"candidates": M, "keep": G, "rule": recipe.selection, "generator": source}
        kept = select_rows(effective, **choose)
        advantage = group_advantages(effective[kept], group=G, scale=recipe.scale_rewards)
        logp_old, loss_mask = sampling_log_probs(
            logp_small, logp_large, mask, hint_tokens=T, ratio=recipe.hint_ratio
        )

        # 9. The small policy, equation 7.
        optimizer.zero_grad()
        logp = small.logp(prompts, tokens[kept], mask[kept], owner=owner[kept])
        loss, _ = clipped_surrogate(
            *(logp, logp_old[kept], advantage, loss_mask[kept]), max_length=N, clip=recipe.clip
        )
        if recipe.kd_place == "loss" and alpha > 0:
            loss = loss + alpha * distillation_loss(
                logp, logp_large[kept], mask[kept], max_length=N, estimator=recipe.kd_estimator
            )
        _descend(small, optimizer, loss)
        out.updated += 6 * size * int(mask[kept].sum())

        # 10. The large policy, off-policy, equation 15: plain rewards, over the small one's probabilities.
        if large is not None and large_optimizer is not None:
            rows, group = kept, G
            if recipe.large_rows == "reward":
                rows = select_rows(reward, **choose)
            elif recipe.large_rows == "all":
                rows, group = torch.arange(Q * M), M
            large_optimizer.zero_grad()
            loss, ratios = _large_loss(
                recipe,
                large.logp(prompts, tokens[rows], mask[rows], owner=owner[rows]),
                logp_old[rows],
                group_advantages(reward[rows], group=group, scale=recipe.large_scale_rewards),
                loss_mask[rows],
                N,
            )
            _descend(large, large_optimizer, loss)
            out.largest_ratio = max(out.largest_ratio, ratios)
            out.updated += 6 * large_size * int(mask[rows].sum())
        if callback is not None:
            callback(step + 1, out)
    out.seconds = time.process_time() - clock
    return out


def weights_of(model: nn.Module) -> int:
    """Return how many weights a model has.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    int

    Examples
    --------
    >>> weights_of(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


class _Anneal:
    """alpha over the run."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.first, self.now = recipe, math.nan, math.nan

    def __call__(self, progress: float, log_weight: list[Tensor]) -> float:
        alpha = self.recipe.alpha
        if self.recipe.alpha_schedule == "linear":
            return alpha * (1 - progress)
        if self.recipe.alpha_schedule == "constant" or not log_weight:
            return alpha
        # The divergence KL(phi || theta) in nats per rollout, averaged over about ten steps.
        divergence = max(-float(log_weight[-1].mean()), 0.0)
        self.now = divergence if math.isnan(self.now) else 0.9 * self.now + 0.1 * divergence
        self.first = self.now if math.isnan(self.first) else self.first
        return alpha * min(self.now / max(self.first, 1e-9), 1.0)


def _large_loss(
    recipe: Recipe, logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, N: int
) -> tuple[Tensor, float]:
    """Return the large policy's loss and its largest ratio."""
    given = (logp, logp_old, advantage, mask)
    if recipe.large_ratio == "truncated":
        assert recipe.ratio_cap is not None
        loss, ratios = truncated_surrogate(*given, max_length=N, cap=recipe.ratio_cap)
    else:
        loss, ratios = clipped_surrogate(
            *given,
            max_length=N,
            clip=recipe.clip if recipe.large_clip is None else recipe.large_clip,
            ratio_cap=recipe.ratio_cap,
            level=recipe.large_ratio,
        )
    return loss, ratios.maximum


def _optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)


def _descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
