"""How good a policy is: sampled rewards, pass@k and greedy accuracy, each with its standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowdim.errors import DataError, Diverged
from lowdim.policy.data import Prompts
from lowdim.policy.evaluation import Evaluation

__all__ = ["evaluate_policy"]

GREEDY = -1  # in the place of a sample's number


def evaluate_policy(
    model: nn.Module,
    tokenizer: Any,
    prompts: Any,
    *,
    reward: Callable[..., Sequence[float | None]],
    samples: int = 8,
    temperature: float = 1.0,
    max_completion_length: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    greedy: bool = True,
    solved_at: float = 1.0,
    shown: int = 16,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Sample completions of every prompt, reward them, and count.

    Sampling takes the policy as it is: generation settings that came with the model (top-p, top-k, repetition
    penalty) do not apply. The t-th token of the j-th sample of the i-th prompt is the inverse of the
    distribution function at a uniform number that depends on (`seed`, i, j, t) alone, so the completions
    do not depend on `batch_size`, on padding or on the other prompts (up to the rounding of the logits).

    Parameters
    ----------
    model : transformers model
        A causal language model; its mode and settings are put back.
    tokenizer : transformers tokenizer
    prompts : Prompts, datasets.Dataset or sequence of mappings
        With ``prompt`` (text or messages); the other columns go to the reward.
    reward : callable
        As TRL calls it: ``reward(prompts, completions, completion_ids, **columns)``.
    samples : int, default 8
        Completions of each prompt.
    temperature : float, default 1.0
    max_completion_length : int, default 256
        In tokens.
    batch_size : int, default 32
        Completions written at a time.
    seed : int, default 0
    greedy : bool, default True
        Whether the most probable completion is rewarded too.
    solved_at : float, default 1.0
        A reward from here on counts as solved, for pass@k and the greedy accuracy.
    shown : int, default 16
        Prompts whose first completions are kept as text.
    share : (int, int), default (0, 1)
        (k, n): only the prompts k, k + n, k + 2n, ..., for one of n processes. The others are NaN;
        `Evaluation.together` joins the shares to what one process would have found.
    progress : callable, optional
        ``progress(done, total)`` after every batch, in completions.

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        If there are no prompts or no ``prompt`` in them, a setting is out of range, a prompt leaves no room
        for the completion, or the reward returns something else than one number or None per completion.
    Diverged
        If the model's logits are not finite.

    References
    ----------
    Chen et al., "Evaluating Large Language Models Trained on Code", 2021 (unbiased pass@k).

    Examples
    --------
    >>> from lowdim.policy import answer_reward
    >>> from lowdim.policy.demo import SIZES, character_tokenizer, llama
    >>> prompts = [{"prompt": "12+34=", "answer": "46"}, {"prompt": "5+6=", "answer": "11"}]
    >>> found = evaluate_policy(
    ...     llama(SIZES["small"], seed=0), character_tokenizer(), prompts,
    ...     reward=answer_reward(kind="number"), samples=4, max_completion_length=4,
    ... )
    >>> found.rewards.shape, found.tokens <= 2 * 5 * 4
    (torch.Size([2, 4]), True)
    """
    rows = _rows(prompts)
    above_zero: tuple[tuple[str, float], ...] = (
        ("samples", samples),
        ("batch_size", batch_size),
        ("temperature", temperature),
    )
    for name, value in above_zero:
        if not value > 0:
            raise DataError(f"evaluate_policy: {name}={value} must be above 0.")
    own, processes = share
    if not 0 <= own < processes:
        raise DataError(f"evaluate_policy: share={share} must be (k, n) with k from 0 to n - 1.")
    ids = [_tokens(tokenizer, row["prompt"]) for row in rows]
    _check_room(model, ids, max_completion_length)
    started = time.perf_counter()
    # A prompt's samples stand side by side, prompts by length: little is spent on padding.
    order = sorted(range(own, len(rows), processes), key=lambda row: -len(ids[row]))
    work = _batches([(row, number) for row in order for number in range(samples)], batch_size)
    work += _batches([(row, GREEDY) for row in order], batch_size) if greedy else []
    total = sum(map(len, work))

    rewards = np.full((len(rows), samples + 1), np.nan)
    lengths = np.zeros((len(rows), samples + 1), dtype=np.int64)
    truncated = np.zeros((len(rows), samples + 1), dtype=bool)
    texts: dict[tuple[int, int], str] = {}
    done = 0
    with _as_generator(model, tokenizer) as stops:
        for batch in work:
            written = _write(
                model,
                tokenizer,
                [ids[row] for row, _ in batch],
                batch,
                temperature,
                max_completion_length,
                seed,
            )
            for (row, number), tokens in zip(batch, written, strict=True):
                end = next((t + 1 for t, token in enumerate(tokens) if token in stops), None)
                lengths[row, number] = end or len(tokens)
                truncated[row, number] = end is None
            kept = [tokens[: lengths[row, n]] for (row, n), tokens in zip(batch, written, strict=True)]
            decoded = tokenizer.batch_decode(kept, skip_special_tokens=True)
            given = _reward(reward, [rows[row] for row, _ in batch], decoded, kept)
            for (row, number), text, earned in zip(batch, decoded, given, strict=True):
                rewards[row, number] = np.nan if earned is None else earned
                if row < shown:
                    texts[row, number] = text
            done += len(batch)
            if progress is not None:
                progress(done, total)
    seconds = time.perf_counter() - started
    return Evaluation(
        rewards=torch.from_numpy(rewards[:, :samples].copy()),
        lengths=torch.from_numpy(lengths[:, :samples].copy()),
        truncated=torch.from_numpy(truncated[:, :samples].copy()),
        greedy=torch.from_numpy(rewards[:, GREEDY].copy()) if greedy else None,
        tokens=int(lengths.sum()),
        seconds=seconds,
        solved_at=solved_at,
        completions=[
            {
                "row": row,
                "sample": "greedy" if number == GREEDY else number,
                "prompt": rows[row]["prompt"],
                "completion": texts[row, number],
                "answer": rows[row].get("answer"),
                "reward": None if np.isnan(rewards[row, number]) else float(rewards[row, number]),
            }
            for row, number in sorted(texts)
        ],
        settings={
            "samples": samples,
            "temperature": temperature,
            "max_completion_length": max_completion_length,
            "seed": seed,
        },
    )


def _batches(work: list[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    return [work[start : start + size] for start in range(0, len(work), size)]


def _rows(prompts: Any) -> list[dict[str, Any]]:
    rows = [dict(row) for row in (prompts.dataset if isinstance(prompts, Prompts) else prompts)]
    if not rows:
        raise DataError("evaluate_policy: there are no prompts. Give at least one.")
    if "prompt" not in rows[0]:
        raise DataError(
            f"evaluate_policy: the prompts have the columns {', '.join(rows[0])} and no 'prompt'. Read them "
            "with read_prompts, which finds the column."
        )
    return rows


def _tokens(tokenizer: Any, prompt: Any) -> list[int]:
    """Tokenize a prompt as TRL does in training."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            "evaluate_policy: the prompts are conversations, and the tokenizer has no chat template. Give "
            "prompts of text, or a tokenizer of a chat model."
        )
    filled = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(filled["input_ids"])


def _check_room(model: nn.Module, ids: list[list[int]], length: int) -> None:
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    longest = max(range(len(ids)), key=lambda row: len(ids[row]))
    if not all(ids):
        raise DataError("evaluate_policy: a prompt has no tokens. Remove it.")
    if length < 1 or (context is not None and len(ids[longest]) + length > context):
        raise DataError(
            f"evaluate_policy: the longest prompt (row {longest + 1}, {len(ids[longest])} tokens) and "
            f"max_completion_length={length} must fit the model's {context} positions. Shorten one of them."
        )


@contextmanager
def _as_generator(model: Any, tokenizer: Any) -> Iterator[set[int]]:
    """Set the model to write with its bare distribution, and yield the tokens that end a completion."""
    from transformers import GenerationConfig

    was, training = model.generation_config, model.training
    stops: set[int] = set()
    for stop in (was.eos_token_id, getattr(tokenizer, "eos_token_id", None)):
        stops |= set(stop) if isinstance(stop, (list, tuple)) else {stop} if stop is not None else set()
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None:
        padding = min(stops, default=0)  # masked, so any token serves
    model.generation_config = GenerationConfig(
        bos_token_id=was.bos_token_id, eos_token_id=sorted(stops) or None, pad_token_id=padding
    )
    model.eval()
    try:
        yield stops
    finally:
        model.generation_config = was
        model.train(training)


@torch.no_grad()
def _write(
    model: Any,
    tokenizer: Any,
    ids: list[list[int]],
    batch: list[tuple[int, int]],
    temperature: float,
    length: int,
    seed: int,
) -> list[list[int]]:
    """Return the tokens that follow each prompt, up to and past their end (padding included)."""
    width = max(map(len, ids))
    padding = model.generation_config.pad_token_id
    device = next(model.parameters()).device
    tokens = torch.tensor([[padding] * (width - len(row)) + row for row in ids], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
    processors = []
    if batch[0][1] != GREEDY:
        uniform = np.stack(
            [np.random.default_rng([seed, row, number]).random(length) for row, number in batch]
        )
        processors.append(_InverseTransform(torch.from_numpy(uniform).to(device), width, temperature))
    written = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=length,
        do_sample=False,
        logits_processor=_processor_list(processors),
    )
    return written[:, width:].tolist()


def _processor_list(processors: list[Any]) -> Any:
    from transformers import LogitsProcessorList

    return LogitsProcessorList(processors)


class _InverseTransform:
    """Choose the first token whose cumulative probability exceeds a given uniform number.

    It leaves this token alone possible, so that the greedy search of `generate` takes it.
    """

    def __init__(self, uniform: Tensor, width: int, temperature: float) -> None:
        self.uniform, self.width, self.temperature = uniform, width, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.width
        cumulative = torch.softmax(scores.double() / self.temperature, dim=-1).cumsum(dim=-1)
        if not torch.isfinite(cumulative[:, -1]).all():
            raise Diverged(
                "evaluate_policy: the model's logits are not finite. Evaluate an earlier checkpoint.",
                step=step,
            )
        level = self.uniform[:, step : step + 1] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, level, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _reward(
    reward: Callable[..., Sequence[float | None]],
    rows: list[dict[str, Any]],
    texts: list[str],
    tokens: list[list[int]],
) -> Sequence[float | None]:
    """Call the reward as TRL does, and check what it returns."""
    from lowdim.policy.rewards import checked

    chat = not isinstance(rows[0]["prompt"], str)
    completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
    columns = {
        name: [row.get(name) for row in rows]
        for name in rows[0]
        if name not in ("prompt", "completion", "completion_ids")
    }
    prompts = [row["prompt"] for row in rows]
    return checked(reward)(prompts=prompts, completions=completions, completion_ids=tokens, **columns)
