"""What two policies do with some prompts before training: rewards, lengths, how far apart they are."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowdim.errors import DataError
from lowdim.policy.diagnostics import effective_sample_size, group_shares, kl_per_token, log_weights
from lowdim.policy.probes import completion_log_probs

__all__ = ["Prospects", "expected_longest", "look_ahead", "share_all_zero"]

Reward = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Prospects:
    """What was seen on a sample of the prompts.

    Parameters
    ----------
    prompts, rollouts : int
        Prompts looked at, and rollouts of the small policy on each.
    success_small, success_large : float
        Share of the rollouts with a reward above zero.
    success_small_error, success_large_error : float
        Their standard errors, by prompts.
    reward_small, reward_large : float
        Mean rewards.
    all_zero, all_zero_kept : float
        Share of the prompts all of whose M (or of whose G) rollouts have reward zero.
    flat : float
        Share of the prompts whose M rewards are equal: nothing for the large policy to learn from.
    sample_size : float
        Effective share of the small policy's rollouts for the large one; NaN without large policy.
    sample_size_rows : int
        Rollouts behind it. Few make it too high.
    kl_token, kl_sequence : float
        Divergence of the small policy from the large one in nats per token and per completion.
    lengths_small, lengths_large : tuple of int
        Tokens of all completions.
    truncated : float
        Share of the small policy's completions that had not ended.
    reward_seconds : float
        Seconds of the reward functions per rollout.
    """

    prompts: int
    rollouts: int
    success_small: float
    success_small_error: float
    success_large: float
    success_large_error: float
    reward_small: float
    reward_large: float
    all_zero: float
    all_zero_kept: float
    flat: float
    sample_size: float
    sample_size_rows: int
    kl_token: float
    kl_sequence: float
    lengths_small: tuple[int, ...]
    lengths_large: tuple[int, ...]
    truncated: float
    reward_seconds: float


def expected_longest(lengths: Sequence[int], *, rows: int) -> float:
    """Return the mean length of the longest of `rows` completions: a batch takes as long as that one.

    Parameters
    ----------
    lengths : sequence of int
        Lengths seen.
    rows : int
        Completions in a batch, drawn from those lengths.

    Returns
    -------
    float

    Examples
    --------
    >>> expected_longest([10, 20], rows=1), expected_longest([10, 20], rows=2)
    (15.0, 17.5)
    """
    ordered = sorted(lengths)
    n = len(ordered)
    return sum(x * (((i + 1) / n) ** rows - (i / n) ** rows) for i, x in enumerate(ordered))


def share_all_zero(reward: Tensor, *, kept: int) -> float:
    """Return the share of prompts of which `kept` rollouts would all have reward zero.

    Parameters
    ----------
    reward : Tensor
        Shape ``(prompts, M)``, M at least `kept`; NaN where there is none.
    kept : int
        G: the mean over all choices of G of the M rollouts is taken.

    Returns
    -------
    float

    Examples
    --------
    >>> share_all_zero(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), kept=2)
    0.5
    """
    shares = []
    for row in reward:
        there = row[~row.isnan()]
        zeros, made = int((there == 0).sum()), int(there.numel())
        if made:
            drawn = min(kept, made)
            shares.append(math.comb(zeros, drawn) / math.comb(made, drawn))
    return sum(shares) / len(shares) if shares else math.nan


def look_ahead(
    small: nn.Module,
    large: nn.Module | None,
    *,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    reward: Reward | Sequence[Reward],
    candidates: int,
    keep_rollouts: int,
    max_completion_length: int,
    temperature: float = 1.0,
    prompts_at_once: int = 8,
    callback: Callable[[str, int, int], None] | None = None,
) -> Prospects:
    """Let the policies write, reward the rollouts, and compare their probabilities.

    Parameters
    ----------
    small, large : transformers models
        Causal language models; nothing about them is changed. Without `large` its figures are NaN.
    tokenizer : transformers tokenizer
    rows : sequence of mapping
        The prompts, each with its other columns.
    reward : callable or sequence of callable
        As TRL calls them; their sum counts.
    candidates, keep_rollouts : int
        M and G. The large policy writes once per prompt.
    max_completion_length : int
        In tokens.
    temperature : float
    prompts_at_once : int
        Prompts of one batch.
    callback : callable, optional
        Called with "rollouts", batches done and batches in all.

    Returns
    -------
    Prospects
    """
    functions = [reward] if callable(reward) else list(reward)
    rewards: list[Tensor] = []
    single: list[Tensor] = []
    weights: list[Tensor] = []
    lengths: tuple[list[int], list[int]] = ([], [])
    kl, tokens, unfinished, spent = 0.0, 0, 0, 0.0
    parts = [rows[i : i + prompts_at_once] for i in range(0, len(rows), prompts_at_once)]
    settings = {"tokenizer": tokenizer, "length": max_completion_length, "temperature": temperature}
    for number, part in enumerate(parts):
        groups = [row for row in part for _ in range(candidates)]
        ids, mask, mask_completion, ended = _write(small, groups, **settings)
        start = time.perf_counter()
        rewards.append(_rewards(functions, groups, ids, mask_completion, tokenizer))
        spent += time.perf_counter() - start
        lengths[0].extend(mask_completion.sum(-1).tolist())
        unfinished += int((~ended).sum())
        if large is not None:
            theta, phi = (
                _log_probs(model, ids, mask, mask_completion, temperature) for model in (large, small)
            )
            weights.append(log_weights(theta, phi, mask_completion))
            count = int(mask_completion.sum())
            kl += count * kl_per_token(theta, phi, mask_completion)
            tokens += count
            ids, _, mask_completion, _ = _write(large, part, **settings)
            single.append(_rewards(functions, part, ids, mask_completion, tokenizer))
            lengths[1].extend(mask_completion.sum(-1).tolist())
        if callback is not None:
            callback("rollouts", number + 1, len(parts))
    r = torch.cat(rewards)
    groups_of = r.view(-1, candidates)
    shares = group_shares(r, group=candidates)
    success, error = _share(groups_of)
    alone, alone_error = _share(torch.cat(single).view(-1, 1)) if single else (math.nan, math.nan)
    w = torch.cat(weights) if weights else torch.zeros(0)
    return Prospects(
        *(len(rows), candidates, success, error, alone, alone_error),
        reward_small=float(r.nanmean()),
        reward_large=float(torch.cat(single).nanmean()) if single else math.nan,
        all_zero=shares.groups_all_zero,
        all_zero_kept=share_all_zero(groups_of, kept=keep_rollouts),
        flat=shares.groups_flat,
        sample_size=effective_sample_size(w),
        sample_size_rows=int(w.numel()),
        kl_token=kl / tokens if tokens else math.nan,
        kl_sequence=float(-w.mean()) if w.numel() else math.nan,
        lengths_small=tuple(int(n) for n in lengths[0]),
        lengths_large=tuple(int(n) for n in lengths[1]),
        truncated=unfinished / r.numel(),
        reward_seconds=spent / r.numel(),
    )


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """Return the tokens of a prompt, which is text or a list of messages.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    prompt : str or list of mapping

    Returns
    -------
    list of int
    """
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    found = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)
    return list(found["input_ids"] if isinstance(found, Mapping) else found)


def _share(groups: Tensor) -> tuple[float, float]:
    """Return the share of rewards above zero, and its standard error with prompts as clusters."""
    above = torch.where(groups.isnan(), groups, (groups > 0).to(groups.dtype)).nanmean(-1)
    above = above[~above.isnan()]
    if not above.numel():
        return math.nan, math.nan
    error = float(above.std() / above.numel() ** 0.5) if above.numel() > 1 else math.nan
    return float(above.mean()), error


def _write(
    model: nn.Module, rows: Sequence[Mapping[str, Any]], *, tokenizer: Any, length: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens and mask of prompts and completions, mask of the completions, and who has ended."""
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows]
    width = max(len(ids) for ids in prompts)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, found in enumerate(prompts):
        ids[number, width - len(found) :] = torch.tensor(found)
        mask[number, width - len(found) :] = 1
    given = cast(Any, model).generation_config
    ends = {tokenizer.eos_token_id, *_listed(given.eos_token_id)} - {None}
    settings = GenerationConfig(
        max_new_tokens=length,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
    )
    with _evaluating(model), torch.no_grad():
        found = cast(Any, model).generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
        )
    completion = found[:, width:]
    over = torch.isin(completion, torch.tensor(sorted(ends), device=device))
    # A completion goes up to its first end, that included.
    mask_completion = (over.cumsum(-1) - over.long() == 0).long()
    whole = torch.cat([mask.to(device), mask_completion], dim=1)
    return found, whole, mask_completion, over.any(-1)


def _listed(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _log_probs(
    model: nn.Module, ids: Tensor, mask: Tensor, mask_completion: Tensor, temperature: float
) -> Tensor:
    device = next(model.parameters()).device
    with _evaluating(model), torch.no_grad():
        found = completion_log_probs(
            model,
            ids.to(device),
            mask.to(device),
            tokens=mask_completion.shape[1],
            temperature=temperature,
        )
    return found.to(mask_completion.device)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _rewards(
    functions: Sequence[Reward],
    rows: Sequence[Mapping[str, Any]],
    ids: Tensor,
    mask_completion: Tensor,
    tokenizer: Any,
) -> Tensor:
    """Return the summed rewards, NaN where no function gave any."""
    tokens = ids[:, -mask_completion.shape[1] :]
    kept = [row[there.bool()].tolist() for row, there in zip(tokens, mask_completion, strict=True)]
    texts = tokenizer.batch_decode(kept, skip_special_tokens=True)
    prompts = [row["prompt"] for row in rows]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    total = torch.full((len(rows),), math.nan, dtype=torch.float64)
    for function in functions:
        given = function(prompts=prompts, completions=completions, completion_ids=kept, **columns)
        name = getattr(function, "__name__", type(function).__name__)
        if len(given) != len(rows):
            raise DataError(
                f"policy plan: the reward {name!r} gave {len(given)} values for {len(rows)} completions. "
                "Return one number (or None) for each."
            )
        try:
            values = torch.tensor([math.nan if r is None else float(r) for r in given], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"policy plan: the reward {name!r} gave something that is no number ({error}). Return one "
                "number (or None) for each completion."
            ) from error
        total = torch.where(values.isnan(), total, total.nan_to_num(0.0) + values)
    return total
