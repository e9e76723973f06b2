"""Samples: what a policy writes itself, as inputs from which a copy of it can learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowdim.errors import DataError
from lowdim.policy.evaluate import _as_generator, _rows, _tokens, _write

__all__ = ["sample_batches"]

Batch = dict[str, Tensor]


def sample_batches(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    *,
    batches: int,
    batch_size: int = 32,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Batch], int]:
    """Let a policy write completions of prompts, and return prompt and completion as inputs of a model.

    Samples are those of `evaluate_policy`: they do not depend on padding or on the batch.

    Parameters
    ----------
    model : transformers model
        A causal language model.
    tokenizer : transformers tokenizer
    prompts : Prompts, datasets.Dataset or sequence of mappings
        With ``prompt``; taken in turn, and again with other samples where more are needed.
    batches, batch_size : int
        How many batches of how many rows.
    max_completion_length : int
        In tokens.
    temperature : float
    seed : int
    progress : callable, optional
        ``progress(done, total)`` after every batch.

    Returns
    -------
    batches : list of dict of str to Tensor
        ``input_ids`` and ``attention_mask``, int64 of shape (batch_size, tokens), padded on the right.
    tokens : int
        Tokens that were written.

    Raises
    ------
    DataError
        If a count is below 1 or there are no prompts.

    Examples
    --------
    >>> batches, tokens = sample_batches(model, tokenizer, prompts, batches=100)  # doctest: +SKIP
    """
    for name, value in (("batches", batches), ("batch_size", batch_size), ("temperature", temperature)):
        if not value > 0:
            raise DataError(f"sample_batches: {name}={value} must be above 0.")
    ids = [_tokens(tokenizer, row["prompt"]) for row in _rows(prompts)]
    found, written = [], 0
    with _as_generator(model, tokenizer) as stops:
        padding = model.generation_config.pad_token_id
        for number in range(batches):
            places = [number * batch_size + i for i in range(batch_size)]
            work = [(place % len(ids), place // len(ids)) for place in places]
            chosen = [ids[row] for row, _ in work]
            completions = _write(model, tokenizer, chosen, work, temperature, max_completion_length, seed)
            rows = []
            for prompt, completion in zip(chosen, completions, strict=True):
                end = next((t + 1 for t, token in enumerate(completion) if token in stops), len(completion))
                written += end
                rows.append(prompt + completion[:end])
            found.append(_padded(rows, padding))
            if progress is not None:
                progress(number + 1, batches)
    return found, written


def _padded(rows: list[list[int]], padding: int) -> Batch:
    width = max(map(len, rows))
    tokens = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": tokens, "attention_mask": mask}
