"""Compaction: rows whose advantage is zero are left out of the update, whose gradient stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lowdim.errors import DataError, ShapeError

__all__ = ["ZERO", "Compaction", "LossType", "compact", "obstacle"]

LossType = Literal["dapo", "cispo", "vespo", "grpo", "sapo", "luspo", "dr_grpo", "bnpo"]

#: An advantage smaller than this is none.
ZERO = 1e-6

# What a batch of TRL's trainer holds: by prompt position, by completion position.
_PROMPT = ("prompt_ids", "prompt_mask")
_COMPLETION = (
    *("completion_ids", "completion_mask", "tool_mask", "importance_sampling_ratio"),
    *("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"),
    *("sampling_logps", "large_logps"),  # of two policies
)


@dataclass(frozen=True)
class Compaction:
    """What was left out.

    Parameters
    ----------
    rows, kept : int
        Rows before, and rows that carry a gradient.
    positions, kept_positions : int
        Token positions that the forward pass goes through, padding included, before and after.

    Examples
    --------
    >>> Compaction(rows=32, kept=12, positions=3200, kept_positions=800).share
    0.375
    """

    rows: int
    kept: int
    positions: int
    kept_positions: int

    @property
    def share(self) -> float:
        """Share of the rows that were kept."""
        return self.kept / self.rows


def obstacle(
    *,
    beta: float = 0.0,
    entropy_bonus: bool = False,
    auxiliary_loss: bool = False,
    entropy_quantile: float = 1.0,
    images: bool = False,
) -> str | None:
    """Why rows with advantage zero cannot be left out: what else they carry.

    Parameters
    ----------
    beta : float
        Weight of the divergence from a reference model.
    entropy_bonus : bool
        Whether the loss rewards entropy.
    auxiliary_loss : bool
        Whether the loss balances the experts of a mixture.
    entropy_quantile : float
        Share of the tokens, those of highest entropy, that the loss keeps; the quantile is one of all rows.
    images : bool
        Whether the batches hold images, whose tensors do not follow the rows.

    Returns
    -------
    str or None
        The obstacle in words; None where there is none.

    Examples
    --------
    >>> obstacle(beta=0.04)
    'the divergence from the reference model (beta=0.04) acts on every row'
    >>> obstacle() is None
    True
    """
    if beta != 0:
        return f"the divergence from the reference model (beta={beta:g}) acts on every row"
    if entropy_bonus:
        return "the entropy bonus acts on every row"
    if auxiliary_loss:
        return "the auxiliary loss of the experts acts on every row"
    if entropy_quantile < 1:
        return f"the quantile of the entropies (top_entropy_quantile={entropy_quantile:g}) is one of all rows"
    if images:
        return "tensors of images do not follow the rows"
    return None


def compact(
    batches: Sequence[dict[str, Any]],
    *,
    loss_type: LossType,
    window: int = 1,
    advantages: str = "advantages",
    trim_prompts: bool = True,
    agree: Callable[[list[int]], list[int]] | None = None,
) -> tuple[list[dict[str, Any]], Compaction]:
    """Leave out the rows of micro-batches that carry no gradient, and keep the gradient as it was.

    Rows are moved only inside a window, the micro-batches of one optimizer step: sorted by length, dealt
    evenly, and stripped of the padding that no row of their new micro-batch needs. The number of
    micro-batches stays, so that all processes run equally many; one that would be empty, or have fewer rows
    than that of another process, gets rows of advantage zero. (A step without rows would not do: an
    optimizer that keeps moments must see a zero gradient rather than none.)

    The divisor of the loss stays that of all rows. What a row weighed in its old micro-batch over what it
    would weigh in its new one multiplies its advantage (the clipped objective is homogeneous in it): ``kept
    rows / rows`` where the loss is a mean over rows (grpo, sapo, luspo, dr_grpo), ``kept tokens / tokens``
    for bnpo, and one where the divisor counts the tokens of the whole batch (dapo, cispo, vespo).

    Parameters
    ----------
    batches : sequence of dict
        Micro-batches as TRL's trainer buffers them, of one generation: `prompt_ids`, `prompt_mask`
        ``(rows, P)`` padded on the left, `completion_ids`, `completion_mask` ``(rows, C)`` padded on the
        right, further tensors by row or by row and token, and scalars.
    loss_type : str
        TRL's name of the loss.
    window : int
        Micro-batches of one generation that belong to one optimizer step; divides their number.
    advantages : str
        The entry that holds the advantages, ``(rows,)`` or ``(rows, C)``.
    trim_prompts : bool
        Whether padding left of the prompts may go. False for models with learned absolute positions, which
        see the padding.
    agree : callable, optional
        Given the rows of each micro-batch here, return those that it shall have, as many or more: the largest
        number of all processes, where they gather a figure for each row.

    Returns
    -------
    batches : list of dict
        As many micro-batches.
    statistics : Compaction

    Raises
    ------
    DataError
        If the loss is unknown.
    ShapeError
        If the window does not divide the micro-batches, or a tensor does not follow the rows.

    Examples
    --------
    >>> import torch
    >>> ones = torch.ones(4, 2, dtype=torch.long)
    >>> batch = {"prompt_ids": ones, "prompt_mask": ones, "completion_ids": ones, "completion_mask": ones,
    ...          "advantages": torch.tensor([1.0, 0.0, -1.0, 0.0])}
    >>> (kept,), statistics = compact([batch], loss_type="grpo")
    >>> kept["advantages"], statistics.kept
    (tensor([ 0.5000, -0.5000]), 2)
    """
    if loss_type not in get_args(LossType):
        raise DataError(f"compact: loss_type={loss_type!r}. Use one of {', '.join(get_args(LossType))}.")
    if window < 1 or len(batches) % window:
        raise ShapeError(
            f"compact: {len(batches)} micro-batches are no windows of {window}. Give a divisor of their"
            " number."
        )
    windows = []
    for start in range(0, len(batches), window):
        together = list(batches[start : start + window])
        rows = _join(together, advantages)
        windows.append((rows, _live(rows, advantages), _weights(together, advantages)))
    dealt = [part for rows, live, _ in windows for part in _deal(rows, live, window)]
    sizes = [max(1, len(part)) for part in dealt]
    sizes = sizes if agree is None else agree(sizes)
    compacted: list[dict[str, Any]] = []
    for number, (rows, live, weights) in enumerate(windows):
        own = slice(number * window, (number + 1) * window)
        for chosen in _fill(rows, live, dealt[own], sizes[own]):
            batch = _take(rows, chosen, advantages, trim_prompts)
            by_row = (-1, *(1,) * (batch[advantages].dim() - 1))
            A = batch[advantages] * live[chosen].view(by_row)
            batch[advantages] = A * _factor(batch, weights[chosen], loss_type).view(by_row)
            compacted.append(batch)
    return compacted, Compaction(
        rows=sum(len(batch["prompt_ids"]) for batch in batches),
        kept=sum(int(live.sum()) for _, live, _ in windows),
        positions=sum(map(_positions, batches)),
        kept_positions=sum(map(_positions, compacted)),
    )


def _positions(batch: dict[str, Any]) -> int:
    rows, prompt = batch["prompt_ids"].shape
    return int(rows * (prompt + batch["completion_ids"].shape[1]))


def _join(batches: list[dict[str, Any]], advantages: str) -> dict[str, Any]:
    """Put the micro-batches of a window below one another; scalars and None stay."""
    joined: dict[str, Any] = {}
    for key, first in batches[0].items():
        if not isinstance(first, Tensor) or first.dim() == 0:
            joined[key] = first
            continue
        by_token = key in (*_PROMPT, *_COMPLETION, advantages)
        if any(len(batch[key]) != len(batch["prompt_ids"]) for batch in batches) or (
            first.dim() > 1 and not by_token
        ):
            raise ShapeError(
                f"compact: {key!r} of shape {tuple(first.shape)} does not follow the"
                f" {len(batches[0]['prompt_ids'])} rows. Switch compaction off."
            )
        joined[key] = torch.cat([batch[key] for batch in batches])
    return joined


def _mask(rows: dict[str, Any]) -> Tensor:
    """Return the mask of the tokens that the loss counts."""
    mask: Tensor = rows["completion_mask"]
    return mask if rows.get("tool_mask") is None else mask * rows["tool_mask"]


def _live(rows: dict[str, Any], advantages: str) -> Tensor:
    """Rows with a gradient: some token that the loss counts has an advantage."""
    A = rows[advantages].abs() >= ZERO
    if A.dim() == 1:
        A = A[:, None]
    return (A & _mask(rows).bool()).any(-1)


def _weights(batches: list[dict[str, Any]], advantages: str) -> Tensor:
    """Of each row: rows and counted tokens of the micro-batch that it came in, shape ``(rows, 2)``."""
    per_row = []
    for batch in batches:
        A, tokens = batch[advantages], _mask(batch).sum()
        if batch.get("nominal_tokens") is not None:  # rollouts that were not made count as if they were
            tokens = batch["nominal_tokens"].sum()
        own = torch.stack([A.new_tensor(len(A)), tokens.to(A.dtype).clamp(min=1)])
        per_row.append(own.expand(len(A), 2))
    return torch.cat(per_row)


def _factor(batch: dict[str, Any], weights: Tensor, loss_type: str) -> Tensor:
    """Old weight of each row over the weight that the loss gives it now, shape ``(rows,)``."""
    if loss_type in ("dapo", "cispo", "vespo"):
        return torch.ones_like(weights[:, 0])
    if loss_type == "bnpo":
        return _mask(batch).sum().to(weights.dtype).clamp(min=1) / weights[:, 1]
    return len(weights) / weights[:, 0]


def _length(rows: dict[str, Any]) -> Tensor:
    length: Tensor = rows["prompt_mask"].sum(-1) + rows["completion_mask"].sum(-1)
    return length


def _deal(rows: dict[str, Any], live: Tensor, count: int) -> list[Tensor]:
    """Deal the live rows, sorted by length, to `count` micro-batches."""
    live_rows = live.nonzero().flatten()
    live_rows = live_rows[_length(rows)[live_rows].argsort(stable=True)]
    return list(live_rows.tensor_split(count))


def _fill(rows: dict[str, Any], live: Tensor, parts: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Fill micro-batches up with rows without gradient, the shortest first, those without a token last."""
    idle, length = (~live).nonzero().flatten(), _length(rows)
    tokens = rows["completion_mask"][idle].sum(-1)
    idle = idle[(length[idle] + (length.max() + 1) * (tokens == 0)).argsort(stable=True)]
    filled = []
    for part, size in zip(parts, sizes, strict=True):
        spare, idle = idle[: size - len(part)], idle[size - len(part) :]
        filled.append(torch.cat([part, spare]))
    return filled


def _take(rows: dict[str, Any], dealt: Tensor, advantages: str, trim_prompts: bool) -> dict[str, Any]:
    """Pick the rows of one micro-batch, without the padding that none of them needs."""
    prompt = rows["prompt_mask"][dealt].any(0).nonzero().flatten()
    completion = rows["completion_mask"][dealt].any(0).nonzero().flatten()
    start = int(prompt[0]) if trim_prompts and len(prompt) else 0
    end = int(completion[-1]) + 1 if len(completion) else 1
    width = rows["completion_ids"].shape[1]
    batch: dict[str, Any] = {}
    for key, value in rows.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            batch[key] = value
            continue
        chosen = value[dealt]
        if key in _PROMPT:
            chosen = chosen[:, start:]
        elif (key in _COMPLETION or key == advantages) and chosen.dim() > 1 and chosen.shape[1] == width:
            chosen = chosen[:, :end]
        batch[key] = chosen
    return batch
