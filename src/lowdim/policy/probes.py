"""Short timings of a policy's parts of a step: decoding at several contexts, scoring, updating.

Nothing is learned: the optimizer's steps have the learning rate zero, and gradients are thrown away.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowdim.policy.steptime import ModelTimes, PassTime, TokenTime

__all__ = ["Clock", "completion_log_probs", "probe_times"]

Clock = Callable[[], float]

POSITIONS = 4096
"""Positions whose logits are held at once."""

AT_SHORT = 0.5
"""Part of the completion's length at which passes are timed a second time."""


def completion_log_probs(
    model: nn.Module, ids: Tensor, attention_mask: Tensor, *, tokens: int, temperature: float = 1.0
) -> Tensor:
    """Return the log-probabilities of the last `tokens` tokens of every row, in float32.

    Logits are held for some thousand positions at a time, and computed again in the backward pass.

    Parameters
    ----------
    model : transformers model
        A causal language model.
    ids, attention_mask : Tensor
        Shape ``(rows, length)``.
    tokens : int
        Length of the completions.
    temperature : float
        Logits are divided by it.

    Returns
    -------
    Tensor
        Shape ``(rows, tokens)``.
    """
    head = cast(Any, model).get_output_embeddings()
    # With an explicit position for every token, left padding shifts nothing.
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    # Adapters are inside the layers of a peft model, so its base model's backbone has them too.
    inner = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else cast(Any, model)
    hidden = inner.base_model(
        input_ids=ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
    ).last_hidden_state[:, -tokens - 1 : -1]
    words = ids[:, -tokens:]

    def log_probs(part: Tensor, chosen: Tensor) -> Tensor:
        logits = head(part).float() / temperature
        return logits.gather(-1, chosen[:, None]).squeeze(-1) - logits.logsumexp(-1)

    found = [
        checkpoint(log_probs, part, chosen, use_reentrant=False)
        for part, chosen in zip(
            hidden.flatten(0, 1).split(POSITIONS), words.flatten().split(POSITIONS), strict=True
        )
    ]
    return torch.cat(found).view(words.shape)


def probe_times(
    model: nn.Module,
    *,
    batches: Sequence[int],
    rows: int,
    prompt_length: int,
    completion_length: int,
    steps: int = 24,
    repeats: int = 3,
    checkpointing: bool = True,
    autocast: bool = False,
    trained: bool = True,
    clock: Clock = time.perf_counter,
) -> ModelTimes:
    """Time decoding, scoring and updating of one policy on random tokens.

    Decoding is timed for a few steps with a context as at the beginning, in the middle and at the end of a
    completion; passes over whole sequences at full length and at half.

    Parameters
    ----------
    model : transformers model
        A causal language model; its weights, mode and settings are the same afterwards, its gradients gone.
    batches : sequence of int
        Numbers of rows to decode at once.
    rows : int
        Rows of a micro-batch for scoring and updating.
    prompt_length, completion_length : int
        In tokens.
    steps : int
        Decoding steps of one measurement.
    repeats : int
        Measurements of everything; medians are taken.
    checkpointing, autocast : bool
        Whether the trainer will use gradient checkpointing, and bfloat16 autocast.
    trained : bool
        False for a frozen model: no updates.
    clock : callable
        Seconds; ``time.process_time`` on a CPU that others use as well.

    Returns
    -------
    ModelTimes
    """
    P, L = prompt_length, completion_length
    contexts = sorted({P, P + L // 2, max(P + L - steps, P)})
    half = max(int(L * AT_SHORT), 1)
    decode: dict[tuple[int, int], list[tuple[float, float]]] = {}
    passes: dict[tuple[str, int], list[float]] = {}
    step: list[float] = []
    with _undisturbed(model, checkpointing=checkpointing and trained):
        for repeat in range(repeats + 1):
            # The first time around warms up: a short decoding, and passes over short sequences.
            for size in batches:
                for context in contexts if repeat else contexts[:1]:
                    found = _decode(model, rows=size, context=context, steps=steps, clock=clock)
                    if repeat:
                        decode.setdefault((size, context), []).append(found)
            for length in (half, L) if repeat else (min(half, 8),):
                scored = _score(model, rows, P, length, autocast=autocast, clock=clock)
                updated = _update(model, rows, P, length, autocast=autocast, clock=clock) if trained else 0.0
                if repeat:
                    passes.setdefault(("score", P + length), []).append(scored / rows)
                    passes.setdefault(("update", P + length), []).append(updated / rows)
            if trained:
                step.append(_optimize(model, clock=clock))
    median = statistics.median
    tokens = {
        size: TokenTime(
            tuple(contexts),
            tuple(median(each for _, each in decode[size, context]) for context in contexts),
            start=median(first for first, _ in decode[size, P]),
        )
        for size in batches
    }
    lengths = sorted({P + half, P + L})
    score, update = (
        PassTime.through([(x, median(passes[kind, x])) for x in lengths]) for kind in ("score", "update")
    )
    return ModelTimes(tokens, score, update, median(step[1:] or step) if step else 0.0)


@contextlib.contextmanager
def _undisturbed(model: nn.Module, *, checkpointing: bool) -> Iterator[None]:
    """Leave mode, random numbers and checkpointing as they were, and no gradients."""
    device = next(model.parameters()).device
    training = model.training
    was = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    devices = [device] if device.type == "cuda" else []
    try:
        if checkpointing != was:
            _checkpoint(model, checkpointing)
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            yield
    finally:
        if checkpointing != was:
            _checkpoint(model, was)
        model.zero_grad(set_to_none=True)
        model.train(training)


def _checkpoint(model: nn.Module, wanted: bool) -> None:
    """Switch gradient checkpointing; transformers renamed it in version 5."""
    verb = "enable" if wanted else "disable"
    names = (f"activation_checkpointing_{verb}", f"gradient_checkpointing_{verb}")
    switch = next(getattr(model, name) for name in names if hasattr(model, name))
    switch()


def _tokens(model: nn.Module, rows: int, length: int) -> Tensor:
    device = next(model.parameters()).device
    words = int(cast(Any, model).get_input_embeddings().weight.shape[0])
    return torch.randint(words, (rows, length), device=device)


def _wait(model: nn.Module) -> None:
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(model: nn.Module, call: Callable[[], Any], clock: Clock) -> float:
    _wait(model)
    start = clock()
    call()
    _wait(model)
    return clock() - start


class _Stamps:
    """A logits processor that notes the time of every token."""

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        self.model, self.clock = model, clock
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        _wait(self.model)
        self.times.append(self.clock())
        return scores


def _decode(model: nn.Module, *, rows: int, context: int, steps: int, clock: Clock) -> tuple[float, float]:
    """Return the seconds until the first token is due, and those of a step after it."""
    from transformers import GenerationConfig, LogitsProcessorList

    model.eval()
    ids = _tokens(model, rows, context)
    given = cast(Any, model).generation_config
    settings = GenerationConfig(
        max_new_tokens=steps + 1,
        min_new_tokens=steps + 1,
        do_sample=True,
        top_k=0,
        eos_token_id=given.eos_token_id,
        pad_token_id=given.pad_token_id if given.pad_token_id is not None else 0,
    )
    stamps = _Stamps(model, clock)
    _wait(model)
    start = clock()
    with torch.no_grad():
        cast(Any, model).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([stamps]),
        )
    times = stamps.times
    return times[0] - start, (times[-1] - times[0]) / (len(times) - 1)


def _score(model: nn.Module, rows: int, prompt: int, tokens: int, *, autocast: bool, clock: Clock) -> float:
    model.eval()
    ids = _tokens(model, rows, prompt + tokens)

    def call() -> None:
        with torch.no_grad(), _cast(model, autocast):
            completion_log_probs(model, ids, torch.ones_like(ids), tokens=tokens)

    return _seconds(model, call, clock)


def _update(model: nn.Module, rows: int, prompt: int, tokens: int, *, autocast: bool, clock: Clock) -> float:
    model.train()
    ids = _tokens(model, rows, prompt + tokens)

    def call() -> None:
        with _cast(model, autocast):
            found = completion_log_probs(model, ids, torch.ones_like(ids), tokens=tokens)
        found.mean().backward()

    return _seconds(model, call, clock)


def _optimize(model: nn.Module, *, clock: Clock) -> float:
    """Time clipping and a step of AdamW that changes nothing; not its first, which makes the moments."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    optimizer.step()

    def call() -> None:
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    spent = _seconds(model, call, clock)
    model.zero_grad(set_to_none=True)
    return spent


def _cast(model: nn.Module, autocast: bool) -> contextlib.AbstractContextManager[Any]:
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
