"""`plan`: what a Hybrid-GRPO run will cost, and whether it will pay, measured before it starts."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lowdim.errors import DataError, MissingExtra
from lowdim.policy.door import shared_vocabulary
from lowdim.policy.memory import memory_plans
from lowdim.policy.planned import Plan
from lowdim.policy.probes import Clock, probe_times
from lowdim.policy.prospects import Reward, expected_longest, look_ahead, prompt_ids
from lowdim.policy.size import ModelSize
from lowdim.policy.steptime import Shape

__all__ = ["plan"]


def plan(
    small: Any,
    large: Any,
    prompts: Iterable[Any],
    *,
    reward: Reward | Sequence[Reward] | None,
    tokenizer: Any = None,
    candidates: int = 14,
    keep_rollouts: int = 8,
    max_completion_length: int = 256,
    temperature: float = 1.0,
    prompts_per_step: int = 8,
    rows: int = 8,
    prompts_measured: int = 64,
    repeats: int = 3,
    checkpointing: bool = True,
    autocast: bool = False,
    train_large: bool = True,
    small_peft_config: Any = None,
    large_peft_config: Any = None,
    lora_rank: int = 64,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    device_bytes: int | None = None,
    engine: bool = False,
    clock: Clock = time.perf_counter,
    seed: int = 0,
    callback: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Measure on a few prompts what Hybrid-GRPO will cost, and say whether it will pay.

    The policies write on `prompts_measured` prompts (M rollouts of the small one, one of the large one); the
    parts of a step are timed on random tokens of the run's shape, each for a moment, and put together by
    `step_seconds`. A batch is as slow as its longest completion, whose mean length is computed from the
    lengths seen. Nothing is written, and the models stay as they are.

    Parameters
    ----------
    small, large : path, Hub id, transformers model or its configuration
        A configuration stands for a model with random weights: times and memory only.
    prompts : iterable
        Texts, lists of messages, or mappings with ``prompt`` and columns for the reward; the first
        `prompts_measured` are taken.
    reward : callable or sequence of callable, or None
        As TRL calls them. None: times and memory only, with completions of full length.
    tokenizer : transformers tokenizer, optional
        By default that of the small model's folder.
    candidates, keep_rollouts : int
        M and G.
    max_completion_length : int
        N, in tokens.
    temperature : float
    prompts_per_step : int
        Q: prompts of one step on this device.
    rows : int
        Rows of a micro-batch (TRL's ``per_device_train_batch_size``).
    prompts_measured : int
    repeats : int
        Timings of each part; medians are taken.
    checkpointing, autocast : bool
        Gradient checkpointing (TRL's default) and bfloat16 autocast in the run.
    train_large : bool
        False for a frozen large policy.
    small_peft_config, large_peft_config : peft.PeftConfig, optional
        Adapters to train instead of the whole model.
    lora_rank : int
        Of the memory plan "lora".
    dtype : str or torch.dtype, optional
        Of models that are loaded; by default that of their files.
    device : str or torch.device
    device_bytes : int, optional
        Memory to fit; by default that of the CUDA device, and none on the CPU.
    engine : bool
        Whether an inference engine holds a copy of the small policy. Its speed is not measured.
    clock : callable
        Seconds.
    seed : int
        Of the rollouts.
    callback : callable, optional
        ``callback(what, done, total)`` for progress.

    Returns
    -------
    Plan

    Raises
    ------
    DataError
        If counts make no sense, prompts are missing, or the models do not share a vocabulary.
    MissingExtra
        Without transformers, or without peft where adapters are asked for.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026. The arithmetic of the step is ours (hybrid-grpo.md, section 7.1).

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> size = dict(vocab_size=64, intermediate_size=64, num_attention_heads=2, pad_token_id=0)
    >>> small = LlamaConfig(hidden_size=16, num_hidden_layers=1, **size)
    >>> large = LlamaConfig(hidden_size=64, num_hidden_layers=2, **size)
    >>> found = plan(
    ...     *(small, large, [8]), reward=None, candidates=4, keep_rollouts=2, max_completion_length=16
    ... )
    >>> sorted(found.step_seconds), found.shape.prompt_length
    (['grpo_large', 'grpo_small', 'hybrid'], 8)
    """
    start = time.perf_counter()
    M, G, Q = candidates, keep_rollouts, prompts_per_step
    _check(M, G, max_completion_length, Q, rows, prompts_measured, repeats, temperature)
    where = _device(device)
    models = [
        _model(given, which, dtype=dtype, device=where)
        for given, which in ((small, "small"), (large, "large"))
    ]
    bare = any(_is_config(given) for given in (small, large))
    sizes = [ModelSize.of(model) for model in models]
    if tokenizer is None and isinstance(small, str | os.PathLike):
        tokenizer = _tokenizer(small)
    entries = _entries(prompts, prompts_measured, tokenizer, timed_only=reward is None or bare)
    lengths = [
        entry if isinstance(entry, int) else len(prompt_ids(tokenizer, entry["prompt"])) for entry in entries
    ]
    longest = max(round(expected_longest(lengths, rows=Q)), 1)
    N = max_completion_length

    seen = None
    if reward is not None and not bare:
        own = None
        if isinstance(large, str | os.PathLike):
            with contextlib.suppress(DataError):  # a large model needs none of its own
                own = _tokenizer(large).get_vocab()
        heads = tuple(cast(Any, model).get_output_embeddings().weight.shape[0] for model in models)
        shared_vocabulary(tokenizer.get_vocab(), own, rows=heads)
        with torch.random.fork_rng([where] if where.type == "cuda" else []):
            torch.manual_seed(seed)
            seen = look_ahead(
                *models,
                tokenizer=tokenizer,
                rows=[cast(Mapping[str, Any], entry) for entry in entries],
                reward=reward,
                candidates=M,
                keep_rollouts=G,
                max_completion_length=N,
                temperature=temperature,
                prompts_at_once=Q,
                callback=callback,
            )
    completion = N if seen is None else round(expected_longest(seen.lengths_small, rows=Q * M))
    alone = N if seen is None else round(expected_longest(seen.lengths_large, rows=Q * G))
    times = []
    for number, (model, batches, config) in enumerate(
        (
            (models[0], (Q * G, Q * M), small_peft_config),
            (models[1], (Q * G,), large_peft_config),
        )
    ):
        if callback is not None:
            callback("timing", number, 2)
        times.append(
            probe_times(
                _adapted(model, config),
                batches=tuple(sorted(set(batches))),
                rows=min(rows, Q * G),
                prompt_length=longest,
                completion_length=max(completion if number == 0 else max(alone, completion), 2),
                repeats=repeats,
                checkpointing=checkpointing,
                autocast=autocast,
                trained=train_large or number == 0,
                clock=clock,
            )
        )
    if callback is not None:
        callback("timing", 2, 2)
    if device_bytes is None and where.type == "cuda":
        device_bytes = torch.cuda.get_device_properties(where).total_memory
    return Plan(
        shape=Shape(
            *(Q, M, G, longest, completion, alone),
            reward=0.0 if seen is None else seen.reward_seconds,
        ),
        small=times[0],
        large=times[1],
        parameters=(sizes[0].parameters, sizes[1].parameters),
        memory=memory_plans(
            *sizes,
            candidates=Q * M,
            prompt_length=max(lengths),
            completion_length=N,
            rows=min(rows, Q * G),
            device_bytes=device_bytes,
            lora_rank=lora_rank,
            checkpointing=checkpointing,
            engine=engine,
            train_large=train_large,
        ),
        prospects=seen,
        device=str(where),
        seconds=time.perf_counter() - start,
    )


def _check(
    M: Any, G: Any, N: Any, Q: Any, rows: Any, measured: Any, repeats: Any, temperature: float
) -> None:
    counts = {
        "candidates": M,
        "keep_rollouts": G,
        "max_completion_length": N,
        "prompts_per_step": Q,
        "rows": rows,
        "prompts_measured": measured,
        "repeats": repeats,
    }
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise DataError(f"policy plan: {name}={count!r}, expected a positive whole number.")
    if not 2 <= G <= M:
        raise DataError(
            f"policy plan: keep_rollouts={G} is not between 2 and candidates={M}. Keep at most as many "
            "rollouts as are written."
        )
    if not temperature > 0:
        raise DataError(f"policy plan: temperature={temperature} must be positive; the paper samples at 1.")


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DataError(
            f"policy plan: device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}). Use "
            "'auto' or 'cpu'; `lowdim doctor` lists what there is."
        ) from error
    return found


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", extra="policy", purpose="plan the training of policies") from error
    return transformers


def _is_config(given: Any) -> bool:
    return isinstance(given, _transformers().PreTrainedConfig)


def _model(given: Any, which: str, *, dtype: str | torch.dtype | None, device: torch.device) -> nn.Module:
    """Return the model, loaded or made if it is not one already."""
    library = _transformers()
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(kind, torch.dtype):
        raise DataError(f"policy plan: dtype={dtype!r} is unknown. Use 'float32' or 'bfloat16'.")
    if _is_config(given):
        model = library.AutoModelForCausalLM.from_config(copy.deepcopy(given))
        return cast(nn.Module, model.to(device=device, dtype=kind))
    if isinstance(given, nn.Module):
        if not hasattr(given, "generate"):
            raise DataError(
                f"policy plan: the {which} model is a {type(given).__name__}, expected a causal language "
                "model of transformers."
            )
        return given
    path = os.fspath(given)
    try:
        model = library.AutoModelForCausalLM.from_pretrained(
            path, **({} if kind is None else {"dtype": kind})
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"policy plan: the {which} model {path} cannot be loaded ({str(error).splitlines()[0]}). Give a "
            "folder that save_pretrained has written, or a Hub id."
        ) from error
    return cast(nn.Module, model.to(device))


def _tokenizer(path: str | os.PathLike[str]) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(os.fspath(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"policy plan: {Path(path)} holds no tokenizer ({str(error).splitlines()[0]}). Give tokenizer=."
        ) from error


def _entries(
    prompts: Iterable[Any], count: int, tokenizer: Any, *, timed_only: bool
) -> list[dict[str, Any] | int]:
    """Return the first prompts as rows; where only times are measured, a prompt may be its length."""
    found: list[dict[str, Any] | int] = []
    for prompt in prompts:
        if len(found) == count:
            break
        if timed_only and isinstance(prompt, int):
            found.append(prompt)
            continue
        row = dict(prompt) if isinstance(prompt, Mapping) else {"prompt": prompt}
        if "prompt" not in row:
            raise DataError(
                f"policy plan: prompt {len(found)} has no column 'prompt'; it has {', '.join(sorted(row))}."
            )
        found.append(row)
    if not found:
        raise DataError("policy plan: there are no prompts. Give some of those of the run.")
    if tokenizer is None and not all(isinstance(entry, int) for entry in found):
        raise DataError("policy plan: the prompts need a tokenizer. Give tokenizer=, or a model's folder.")
    return found


def _adapted(model: nn.Module, config: Any) -> nn.Module:
    """Return a copy with adapters, or the model itself."""
    if config is None:
        return model
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", extra="policy", purpose="plan the training of adapters") from error
    return cast(nn.Module, get_peft_model(copy.deepcopy(cast(Any, model)), config))
