"""Staged rollouts: a prompt that the policy solves every time gets fewer of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError
from lowdim.policy.forgetting import ForgettingGuard

__all__ = [
    "Decision",
    "StagedRollouts",
    "audit_groups",
    "check_stages",
    "expected_rollouts",
    "solved",
]


def check_stages(settings: Any) -> None:
    """Refuse staged rollouts where a method needs every rollout, or in impossible numbers.

    Parameters
    ----------
    settings : HybridGRPOConfig
        Or anything with its attributes.

    Raises
    ------
    DataError
        Naming the setting, the reason and what to give.
    """
    first, group = settings.staged_rollouts, settings.num_generations
    if first is None:
        return
    where = f"HybridGRPOConfig: staged_rollouts={first}"
    if settings.method != "grpo":
        why = (
            f"the selection of {settings.keep_rollouts} of {settings.candidates} rollouts needs all of them"
            if settings.keep_rollouts < settings.candidates
            else "the distillation has something to teach on solved prompts too"
        )
        raise DataError(f"{where} with method={settings.method!r}: {why}. Use method='grpo'.")
    if not isinstance(first, int) or not 1 <= first < group:
        raise DataError(
            f"{where} of {group} rollouts per prompt. Give 1 to {group - 1}, such as {group // 2}."
        )
    if not 0 <= settings.stage_audit <= 1:
        raise DataError(
            f"HybridGRPOConfig: stage_audit={settings.stage_audit} is no share. Give 0 to 1, such as 0.05."
        )
    if not isinstance(settings.stage_cooldown, int) or settings.stage_cooldown < 1:
        raise DataError(
            f"HybridGRPOConfig: stage_cooldown={settings.stage_cooldown}. Give a number of generations, such"
            " as 20."
        )


def solved(rewards: Tensor, *, maximum: float = 1.0) -> Tensor:
    """Find the groups whose rollouts so far all have the maximum reward.

    Groups without any success are never taken for settled: rare successes on hard prompts are the most
    valuable samples. Neither is a group with a rollout that nothing could score (NaN).

    Parameters
    ----------
    rewards : Tensor
        Rewards of the first stage, shape ``(prompts, first)``.
    maximum : float
        The reward of a right answer.

    Returns
    -------
    Tensor
        Boolean, shape ``(prompts,)``.

    Examples
    --------
    >>> import torch
    >>> solved(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, torch.nan]]))
    tensor([ True, False, False, False])
    """
    return (rewards >= maximum - 1e-6).all(-1)


def audit_groups(groups: int, *, share: float, seed: int, cycle: int) -> Tensor:
    """Draw the groups that get all their rollouts whatever the first stage shows.

    The draw depends on the seed and the cycle alone: a resumed run and every process draw the same.

    Parameters
    ----------
    groups : int
        Groups of all processes.
    share : float
        Probability of each group.
    seed, cycle : int
        Seed of the run; number of the generation.

    Returns
    -------
    Tensor
        Boolean, shape ``(groups,)``.

    Examples
    --------
    >>> audit_groups(4, share=1.0, seed=0, cycle=7)
    tensor([True, True, True, True])
    """
    source = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + cycle) % 2**63)
    return torch.rand(groups, generator=source) < share


def expected_rollouts(success: Tensor, *, first: int, group: int) -> Tensor:
    """Rollouts that a prompt gets on average: n1 + (G - n1)(1 - p^n1).

    Parameters
    ----------
    success : Tensor
        Probability p of a right answer, any shape.
    first, group : int
        n1, rollouts of the first stage; G, of both.

    Returns
    -------
    Tensor
        Of the same shape.

    Examples
    --------
    >>> import torch
    >>> expected_rollouts(torch.tensor([0.0, 0.5, 1.0]), first=2, group=8)
    tensor([8.0000, 6.5000, 2.0000])
    """
    return first + (group - first) * (1 - success**first)


@dataclass(frozen=True)
class Decision:
    """Which groups go on after the first stage.

    Attributes
    ----------
    expand : Tensor
        Boolean, shape ``(prompts,)``: groups that get the rest of their rollouts.
    solved : Tensor
        Boolean, shape ``(prompts,)``: groups whose first stage had nothing but right answers.
    audited : Tensor
        Boolean, shape ``(prompts,)``: solved groups that go on all the same.
    """

    expand: Tensor
    solved: Tensor
    audited: Tensor

    def made(self, *, first: int, group: int) -> Tensor:
        """Return the mask of the rollouts that are made, shape ``(prompts, group)``.

        Parameters
        ----------
        first, group : int
            Rollouts of the first stage and of both.
        """
        return (torch.arange(group, device=self.expand.device) < first) | self.expand[:, None]


class StagedRollouts:
    """Decide, after the first rollouts of each prompt, which prompts get the others.

    A prompt with success rate p goes on with probability ``1 - p^n1``: a soft choice of unsolved prompts that
    needs no statistics and no second epoch. Advantages are taken over the rollouts that were made
    (:func:`~lowdim.policy.group_advantages` leaves NaN out), divided as if all had been: a stop never makes
    other groups weigh more. The bias: the failures that the unmade rollouts would have shown are missing.

    Parameters
    ----------
    first : int
        n1, rollouts of the first stage.
    group : int
        G, rollouts of a group that goes on.
    maximum : float
        The reward of a right answer.
    audit : float
        Share of the solved groups that go on all the same.
    seed : int
        Of the audit draws.
    guard : ForgettingGuard, optional
        A fresh one by default.

    Raises
    ------
    DataError
        If `first` is not between 1 and `group` - 1, or `audit` is no share.

    References
    ----------
    Own. Stopping a group at its first failures instead would lose the rare successes on hard prompts.

    Examples
    --------
    >>> import torch
    >>> stages = StagedRollouts(first=2, group=8, audit=0.0)
    >>> decision = stages.decide(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), keys=[10, 11])
    >>> decision.expand, int(decision.made(first=2, group=8).sum())
    (tensor([False,  True]), 10)
    """

    def __init__(
        self,
        *,
        first: int,
        group: int,
        maximum: float = 1.0,
        audit: float = 0.05,
        seed: int = 0,
        guard: ForgettingGuard | None = None,
    ) -> None:
        if not 1 <= first < group:
            raise DataError(
                f"StagedRollouts: first={first} of a group of {group}. Give 1 to {group - 1}; half is"
                " the default."
            )
        if not 0 <= audit <= 1:
            raise DataError(
                f"StagedRollouts: audit={audit} is no share. Give a number from 0 to 1, such as 0.05."
            )
        self.first, self.group, self.maximum = first, group, maximum
        self.audit, self.seed = audit, seed
        self.guard = ForgettingGuard() if guard is None else guard
        self.cycle = 0

    @property
    def active(self) -> bool:
        """Whether the next cycle is staged; False while the guard has it paused."""
        return self.guard.active

    def decide(self, rewards: Tensor, *, keys: Sequence[int], processes: int = 1) -> Decision:
        """Choose the groups that go on, and end the cycle.

        All processes must generate equally often, so each lets as many groups go on as the one that has most
        of them: solved groups make up the number, and count as audited. They cost no time, for the others
        would wait. While the guard has staging paused all groups go on.

        Parameters
        ----------
        rewards : Tensor
            Rewards of the first stage of all processes, shape ``(prompts, first)``, NaN where nothing could
            score a rollout.
        keys : sequence of int
            A number for each prompt, the same at each visit.
        processes : int
            Processes, each of which holds as many of the prompts, in order.

        Returns
        -------
        Decision

        Raises
        ------
        ShapeError
            If `rewards` has other shapes.
        DataError
            If a reward is above `maximum`.
        """
        prompts = len(keys)
        if rewards.shape != (prompts, self.first) or prompts % processes:
            raise ShapeError(
                f"StagedRollouts.decide: rewards of shape {tuple(rewards.shape)} for {prompts} prompts in"
                f" {processes} processes. Expected ({prompts}, {self.first}), as many in each process."
            )
        if bool((rewards > self.maximum + 1e-6).any()):
            raise DataError(
                f"StagedRollouts.decide: a reward of {float(rewards.nan_to_num(-math.inf).max()):g} is above"
                f" {self.maximum:g}, which is taken for a right answer. Say what one gets: solved_reward=..."
            )
        full = not self.active
        right = solved(rewards, maximum=self.maximum).cpu()
        scored = ~rewards.isnan()
        share = (rewards >= self.maximum - 1e-6).sum(-1) / scored.sum(-1)  # 0 / 0 is NaN
        self.guard.observe(keys, share, right)
        expand = ~right | audit_groups(prompts, share=self.audit, seed=self.seed, cycle=self.cycle)
        self.cycle += 1
        if full:
            expand = torch.ones_like(expand)
        own = expand.view(processes, -1)
        most = int(own.sum(-1).max())
        for groups in own:
            spare = (~groups).nonzero().flatten()
            groups[spare[: most - int(groups.sum())]] = True
        return Decision(
            expand.to(rewards.device), right.to(rewards.device), (expand & right).to(rewards.device)
        )

    def statistics(self, decision: Decision, rewards: Tensor) -> dict[str, float]:
        """Return what a cycle is logged with.

        Parameters
        ----------
        decision : Decision
            Of the cycle.
        rewards : Tensor
            Of both stages, shape ``(prompts, group)``, NaN where no rollout was made.

        Returns
        -------
        dict of str to float
            Share of the groups stopped, share of the rollouts made, mean reward of the audited groups and the
            share of failures among their later rollouts (what stopped groups hide; NaN without any), success
            on prompts solved at their last visit, and whether the guard lets staging be.
        """
        later = rewards[decision.audited][:, self.first :]
        return {
            "stopped": float((~decision.expand).float().mean()),
            "made": float(decision.made(first=self.first, group=self.group).float().mean()),
            "audit_reward": float(rewards[decision.audited].nanmean()),
            "audit_failures": float((later < self.maximum - 1e-6).float().mean()),
            "success_on_solved": self.guard.success,
            "active": float(self.active),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-ready."""
        return {"format": 1, "cycle": self.cycle, "guard": self.guard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, given as `state`."""
        if state.get("format") != 1:
            raise DataError(
                f"StagedRollouts: a state of format {state.get('format')!r}, expected 1. Resume with the"
                " version of lowdim that wrote the checkpoint."
            )
        self.cycle = int(state["cycle"])
        self.guard.load_state_dict(state["guard"])
