"""Which G of the M rollouts of a prompt are trained on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["Selection", "select_extremes", "select_rows"]

Selection = Literal["both", "top", "max_variance", "random"]


def select_extremes(
    score: Tensor, *, candidates: int, keep: int, generator: torch.Generator | None = None
) -> Tensor:
    """Keep the G/2 highest and the G/2 lowest of the M rollouts of each prompt.

    The same as :func:`select_rows` with ``rule="both"``, the paper's choice.

    Parameters
    ----------
    score : Tensor
        Effective reward of each rollout, the M rollouts of a prompt one after the other, shape ``(rows,)``.
    candidates : int
        M, rollouts of each prompt.
    keep : int
        G, rollouts that are kept; even.
    generator : torch.Generator or None
        Breaks ties, on the CPU.

    Returns
    -------
    Tensor
        Row numbers, int64, shape ``(prompts * keep,)``: for each prompt the top half, best first, then the
        bottom half, worst first. With M = G all rows in their order.

    Raises
    ------
    DataError
        If `keep` is odd or larger than `candidates`.
    ShapeError
        If the number of rows is no multiple of `candidates`.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> select_extremes(torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7, 0.2]), candidates=6, keep=4)
    tensor([1, 4, 0, 5])
    """
    return select_rows(score, candidates=candidates, keep=keep, rule="both", generator=generator)


def select_rows(
    score: Tensor,
    *,
    candidates: int,
    keep: int,
    rule: Selection = "both",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Keep G of the M rollouts of each prompt.

    Ties are broken at random, never by position. Rollouts without a score (NaN: no reward function spoke) are
    taken only where a prompt has fewer than G others.

    Parameters
    ----------
    score : Tensor
        Score of each rollout, the M rollouts of a prompt one after the other, shape ``(rows,)``.
    candidates : int
        M, rollouts of each prompt.
    keep : int
        G, rollouts that are kept.
    rule : {"both", "top", "max_variance", "random"}
        "both": G/2 highest and G/2 lowest (the paper's); "top": the G highest; "max_variance": the G whose
        scores vary most (PODS), which are always some of the highest and some of the lowest; "random": any G.
    generator : torch.Generator or None
        Breaks ties, on the CPU; None stands for PyTorch's global one.

    Returns
    -------
    Tensor
        Row numbers, int64, shape ``(prompts * keep,)``, grouped by prompt, on the device of the scores. With
        M = G all rows in their order.

    Raises
    ------
    DataError
        If `keep` is not positive, larger than `candidates`, or odd with rule "both"; or the rule is unknown.
    ShapeError
        If the scores are not one row of a multiple of `candidates` numbers.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, algorithm 1; Xu et al., "Not All Rollouts are Useful" (PODS), 2025.

    Examples
    --------
    >>> import torch
    >>> score = torch.tensor([0.0, 0.1, 0.2, 1.0])
    >>> select_rows(score, candidates=4, keep=2, rule="top")
    tensor([3, 2])
    >>> select_rows(score, candidates=4, keep=3, rule="max_variance")
    tensor([3, 0, 1])
    """
    if score.dim() != 1 or candidates < 1 or score.shape[0] % candidates:
        raise ShapeError(
            f"select_rows: {tuple(score.shape)} scores are no groups of candidates={candidates}. "
            "Give one score per rollout, all rollouts of a prompt one after the other."
        )
    if not 1 <= keep <= candidates:
        raise DataError(
            f"select_rows: keep={keep} of candidates={candidates}. Keep between 1 and {candidates}."
        )
    if rule not in ("both", "top", "max_variance", "random"):
        raise DataError(f"select_rows: rule={rule!r}. Give 'both', 'top', 'max_variance' or 'random'.")
    if rule == "both" and keep % 2:
        raise DataError(
            f"select_rows: keep={keep} is odd; 'both' takes halves. Use {keep - 1} or {keep + 1}."
        )
    if keep == candidates:
        return torch.arange(score.shape[0], device=score.device)
    groups = score.detach().float().cpu().view(-1, candidates)
    shuffle = torch.rand(groups.shape, generator=generator).argsort(-1)
    if rule == "random":
        groups = torch.where(groups.isnan(), groups, 0)
    # Sorting the shuffled rows by a stable sort breaks ties at random; NaN comes last, after the `valid`.
    order = shuffle.gather(-1, groups.gather(-1, shuffle).sort(stable=True, dim=-1).indices)
    valid = (~groups.isnan()).sum(-1, keepdim=True)
    highest = _count_of_highest(groups.gather(-1, order), valid, keep, rule)
    # Position in the ascending order: `highest` from the end of the valid ones, best first, then the worst.
    slot = torch.arange(keep)
    position = torch.where(slot < highest, valid - 1 - slot, slot - highest)
    position = torch.where(valid < keep, slot, position)
    start = torch.arange(groups.shape[0])[:, None] * candidates
    return (start + order.gather(-1, position)).flatten().to(score.device)


def _count_of_highest(ascending: Tensor, valid: Tensor, keep: int, rule: Selection) -> Tensor:
    """How many of the kept rows of each prompt come from the top, shape ``(prompts, 1)``."""
    if rule == "both":
        return torch.full_like(valid, keep // 2)
    if rule in ("top", "random"):
        return torch.full_like(valid, keep)
    highest = torch.arange(keep + 1)[:, None]
    slot = torch.arange(keep)
    position = torch.where(slot < highest, valid[:, :, None] - 1 - slot, slot - highest).clamp(min=0)
    scores = ascending[:, None, :].expand(-1, keep + 1, -1).gather(-1, position)
    # Ties between equally varied choices (all rewards equal) go to the balanced one.
    variance = scores.var(-1, correction=0).nan_to_num(0)
    imbalance = (highest[:, 0] - keep / 2).abs()
    return (variance.round(decimals=6) - 1e-9 * imbalance).argmax(-1, keepdim=True)
