"""What a run needs to make sense, checked before any work is spent."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from lowdim.errors import DataError, LowdimWarning

__all__ = [
    "check_batches",
    "check_columns",
    "check_launch",
    "check_pair",
    "check_precision",
    "check_rewards",
    "check_settings",
    "shared_vocabulary",
]

METHODS = ("hybrid", "kdrl", "pods", "grpo")
CHOICES = {
    "method": METHODS,
    "selection": ("both", "top", "max_variance", "random"),
    "center": ("kept", "all"),
    "kd_estimator": ("k1", "k2", "k3"),
    "kd_place": ("reward", "loss"),
    "hint_ratio": ("small", "large", "ignore"),
    "large_ratio": ("token", "sequence", "truncated"),
    "large_scale_rewards": ("none", "group", "batch"),
    "score": ("all", "kept"),
    "offload_large": (False, True, "all"),
}
GIVEN = {
    *("prompts", "completions", "completion_ids", "prompt", "completion", "trainer_state"),
    *("log_extra", "log_metric", "environments", "self"),
}


def _refuse(where: str, got: str, remedy: str) -> None:
    raise DataError(f"HybridGRPOConfig: {where} {got}. {remedy}")


def check_settings(settings: Any) -> None:
    """Refuse settings that contradict each other or the method.

    Parameters
    ----------
    settings : HybridGRPOConfig
        Or anything with its attributes.

    Raises
    ------
    DataError
        Naming the setting, what was given, and what to give.
    """
    for name, allowed in CHOICES.items():
        if getattr(settings, name) not in allowed:
            expected = ", ".join(repr(value) for value in allowed)
            _refuse(f"{name}={getattr(settings, name)!r}", "is unknown", f"Give one of {expected}.")
    s = settings
    M, G, T, N = s.candidates, s.keep_rollouts, s.hint_tokens, s.max_completion_length
    if not s.temperature > 0:
        _refuse(f"temperature={s.temperature}", "has no log-probabilities", "Sample at 1.0, the paper's.")
    if s.use_vllm and find_spec("vllm") is None:
        _refuse(
            "use_vllm=True",
            "needs the package 'vllm', which is not installed",
            "Install it (pip install vllm; Linux and a GPU), or let transformers write: use_vllm=False.",
        )
    if s.method == "grpo":
        return
    if not isinstance(M, int) or M < 2:
        _refuse(f"candidates={M}", "are too few", "Give at least 2 rollouts per prompt; the paper has 14.")
    if not isinstance(G, int) or not 2 <= G <= M:
        _refuse(
            f"keep_rollouts={G}", f"is not between 2 and candidates={M}", f"Give an even number up to {M}."
        )
    if s.selection == "both" and G % 2 and G != M:
        _refuse(f"keep_rollouts={G}", "is odd, and selection='both' takes halves", f"Use {G - 1} or {G + 1}.")
    if not 0 <= T < N:
        _refuse(
            f"hint_tokens={T}",
            f"leaves nothing of max_completion_length={N} (which includes the hint) to generate",
            f"Give 0 to {N - 1}.",
        )
    if not s.alpha >= 0 or math.isinf(s.alpha):
        _refuse(f"alpha={s.alpha}", "is negative or not finite", "Give 0 (no distillation) or more.")
    if s.kd_place == "loss" and s.kd_estimator == "k1":
        _refuse(
            "kd_estimator='k1'",
            "teaches nothing as a loss: its expected gradient is zero",
            "Use kd_estimator='k2' (the same divergence as k1 in the reward) or 'k3', or kd_place='reward'.",
        )
    if s.kd_place == "reward" and s.kd_estimator == "k2":
        _refuse(
            "kd_estimator='k2'", "is for kd_place='loss'", "In the reward use 'k1' (the paper's) or 'k3'."
        )
    high = s.epsilon if s.epsilon_high is None else s.epsilon_high
    if s.large_ratio == "truncated":
        if s.ratio_cap is None or not s.ratio_cap > 0:
            _refuse(f"ratio_cap={s.ratio_cap}", "does not bound large_ratio='truncated'", "Give 2.")
    elif s.ratio_cap is not None and not s.ratio_cap > 1 + high:
        _refuse(
            f"ratio_cap={s.ratio_cap}",
            f"is not above 1 + epsilon = {1 + high:g}",
            "Give 3 to 10, or None (the paper's).",
        )
    _check_method(s)


def _check_method(s: Any) -> None:
    if s.loss_type != "dr_grpo":
        _refuse(
            f"loss_type={s.loss_type!r}",
            f"contradicts method={s.method!r}, which divides by the constant max_completion_length",
            "Leave loss_type out, or give 'dr_grpo'; other losses go with method='grpo'.",
        )
    if s.num_generations != s.candidates:
        _refuse(
            f"num_generations={s.num_generations}",
            f"contradicts candidates={s.candidates}",
            "Leave num_generations out.",
        )
    for name, neutral in (
        ("multi_objective_aggregation", "sum_then_normalize"),
        ("top_entropy_quantile", 1.0),
    ):
        if getattr(s, name) != neutral:
            _refuse(
                f"{name}={getattr(s, name)!r}",
                f"goes with method='grpo' only, not {s.method!r}",
                f"Leave {name} out.",
            )
    if s.method == "pods" and (s.alpha or s.hint_tokens or s.train_large):
        _refuse(
            "method='pods'",
            f"has one model, but alpha={s.alpha}, hint_tokens={s.hint_tokens}, train_large={s.train_large} "
            "need two",
            "Leave them out, or use method='hybrid' with a large model.",
        )
    if s.method == "kdrl" and s.train_large:
        _refuse("train_large=True", "contradicts method='kdrl', a frozen teacher", "Use method='hybrid'.")
    if s.large_ratio == "sequence" and s.hint_ratio == "ignore" and s.hint_tokens:
        _refuse(
            "large_ratio='sequence'",
            "has no ratio for a rollout that is all hint with hint_ratio='ignore'",
            "Use hint_ratio='small', or large_ratio='token'.",
        )


def check_batches(*, per_device: int, slices: int, candidates: int, keep: int) -> None:
    """Refuse batches that cut through the rollouts of a prompt.

    Parameters
    ----------
    per_device : int
        ``per_device_train_batch_size``, in rollouts.
    slices : int
        ``steps_per_generation``: slices of a generation batch.
    candidates, keep : int
        M and G.

    Raises
    ------
    DataError
        With the nearest sizes that fit.

    Examples
    --------
    >>> check_batches(per_device=14, slices=2, candidates=14, keep=8)
    """
    rows = per_device * slices
    if rows % candidates:
        step = candidates // math.gcd(candidates, slices)
        below, above = per_device // step * step, -(-per_device // step) * step
        sizes = " or ".join(str(size) for size in (below, above) if size)
        raise DataError(
            f"HybridGRPOConfig: per_device_train_batch_size={per_device} times steps_per_generation={slices} "
            f"is {rows} rollouts, not a multiple of candidates={candidates}: the rollouts of a prompt stay "
            f"on one process. Use per_device_train_batch_size={sizes}."
        )
    if (rows // candidates * keep) % slices:
        raise DataError(
            f"HybridGRPOConfig: {rows // candidates * keep} kept rollouts ({rows // candidates} prompts "
            f"times keep_rollouts={keep}) do not divide into steps_per_generation={slices} equal slices. Use "
            "keep_rollouts, prompts or slices that do (for instance "
            f"per_device_train_batch_size={candidates})."
        )


def check_launch(args: Any, *, two: bool, processes: int = 1, shards: int = 0) -> None:
    """Refuse ways of running two models that cannot work.

    Parameters
    ----------
    args : HybridGRPOConfig
        The settings.
    two : bool
        Whether there is a large model.
    processes : int
        Number of processes.
    shards : int
        Version of FSDP, 0 without.

    Raises
    ------
    DataError
        With the reason.
    """
    if not two:
        return
    if getattr(args, "deepspeed_plugin", None) is not None or getattr(args, "deepspeed", None):
        raise DataError(
            "HybridGRPOTrainer: DeepSpeed owns one model and optimizer per engine, and accelerate refuses to "
            "prepare a second one in the same run. Use DDP or FSDP2 (accelerate launch --use_fsdp "
            "--fsdp_version 2), LoRA and offload_large, or method='grpo' or 'pods' with one model."
        )
    if args.fp16:
        raise DataError(
            "HybridGRPOTrainer: fp16=True scales the gradients of both optimizers with one scaler, which "
            "counts their overflows together. Use bf16=True or float32."
        )
    if shards == 1:
        raise DataError(
            "HybridGRPOTrainer: FSDP1 hides the parameters of both models in flat ones. Use FSDP2: "
            "fsdp_config={'version': 2}, or fsdp_version: 2 in accelerate's configuration."
        )
    if args.offload_large and shards:
        raise DataError(
            f"HybridGRPOTrainer: offload_large={args.offload_large!r} moves what FSDP has sharded. "
            "Use FSDP's own CPU offload: fsdp_config={'cpu_offload': True}."
        )
    if args.offload_large == "all" and processes > 1:
        raise DataError(
            f"HybridGRPOTrainer: offload_large='all' moves weights, which {processes} processes hold in "
            "buckets or shards. Use offload_large=True (the optimizer's moments only) or FSDP's own CPU "
            "offload."
        )


def check_pair(small: Any, large: Any) -> None:
    """Refuse one object in both places; warn if the small model is the larger one.

    Parameters
    ----------
    small, large : model or path
        As given to the trainer.

    Raises
    ------
    DataError
        If both are the same object.
    """
    if small is large and not isinstance(small, str):
        raise DataError(
            "HybridGRPOTrainer: the small and the large model are the same object, and would be updated "
            "twice. Give two models, copy.deepcopy(model), or the same path twice (which loads two copies)."
        )
    if hasattr(small, "parameters") and hasattr(large, "parameters"):
        sizes = [sum(p.numel() for p in model.parameters()) for model in (small, large)]
        if sizes[0] > sizes[1]:
            warnings.warn(
                f"HybridGRPOTrainer: the small model has {sizes[0]:,} parameters and the large one "
                f"{sizes[1]:,}: rollouts come from the larger one. Swap them, unless this is meant.",
                LowdimWarning,
                stacklevel=3,
            )


def check_precision(model: Any) -> None:
    """Warn if a model is trained in numbers too coarse for its updates.

    Parameters
    ----------
    model : nn.Module
        The large model, adapters included.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained and all(p.dtype.itemsize == 2 for p in trained):
        warnings.warn(
            "HybridGRPOTrainer: the large model is trained in "
            f"{str(trained[0].dtype).removeprefix('torch.')}: updates below a hundredth of a weight are "
            "rounded away. Give large_peft_config (adapters are float32), or load it in float32 and set "
            "bf16=True.",
            LowdimWarning,
            stacklevel=3,
        )


def shared_vocabulary(
    small: Mapping[str, int],
    large: Mapping[str, int] | None,
    *,
    rows: tuple[int, int],
    special: tuple[Mapping[str, int | None], Mapping[str, int | None]] | None = None,
) -> int | None:
    """Count the token ids that both models know, where their padding differs.

    Parameters
    ----------
    small, large : mapping
        Token to id of the two tokenizers; None where the large model brings none.
    rows : tuple of int
        Rows of the output embeddings of the small and the large model.
    special : tuple of mapping, optional
        Special tokens' ids of both ("eos_token_id", "bos_token_id", "pad_token_id"); None values are not
        compared.

    Returns
    -------
    int or None
        The number of ids to keep in both models' logits; None if both have the same number of rows.

    Raises
    ------
    DataError
        If the vocabularies differ, or a model has fewer rows than there are tokens.

    Examples
    --------
    >>> words = {"a": 0, "b": 1}
    >>> shared_vocabulary(words, words, rows=(2, 4))
    2
    >>> shared_vocabulary(words, None, rows=(4, 4)) is None
    True
    """
    if large is not None and small != large:
        differ = [word for word in small if large.get(word) != small[word]]
        differ += [word for word in large if word not in small]
        word = min(differ, key=lambda w: small.get(w, large.get(w, 0)))
        raise DataError(
            f"HybridGRPOTrainer: the vocabularies differ in {len(differ):,} tokens, for instance {word!r} is "
            f"{small.get(word)} for the small and {large.get(word)} for the large model. Both must share a "
            "tokenizer: take two sizes of one model family, or a compressed copy of the large model."
        )
    for name in () if special is None else special[0]:
        ids = special[0][name], special[1].get(name)  # type: ignore[index]
        if None not in ids and ids[0] != ids[1]:
            raise DataError(
                f"HybridGRPOTrainer: {name} is {ids[0]} for the small and {ids[1]} for the large model. "
                "Both must end and pad alike: take models of one family, or set the same special tokens."
            )
    count = max(small.values()) + 1
    if min(rows) < count:
        which = "small" if rows[0] < count else "large"
        raise DataError(
            f"HybridGRPOTrainer: the tokenizer has {count:,} ids, the {which} model only {min(rows):,} rows "
            "of logits. Give the tokenizer that belongs to both models."
        )
    return None if rows[0] == rows[1] else count


def check_rewards(rewards: Sequence[Any] | Any | None) -> None:
    """Refuse a run without reward functions.

    Parameters
    ----------
    rewards : callable or sequence
        As given to the trainer.

    Raises
    ------
    DataError
        If there is none, or one cannot be called.
    """
    given = rewards if isinstance(rewards, list | tuple) else [] if rewards is None else [rewards]
    if not given:
        raise DataError(
            "HybridGRPOTrainer: no reward function. Give reward_funcs, for instance "
            "lowdim.policy.answer_reward(column='answer')."
        )
    for reward in given:
        if not callable(reward) and not isinstance(reward, str):
            raise DataError(
                f"HybridGRPOTrainer: a reward of type {type(reward).__name__} cannot be called. Give "
                "f(prompts, completions, completion_ids, **columns) -> list of float or None."
            )


def check_columns(columns: Iterable[str], rewards: Sequence[Any]) -> None:
    """Refuse data without a prompt, or without a column that a reward function asks for.

    Parameters
    ----------
    columns : iterable of str
        Names of the columns of the data.
    rewards : sequence
        Reward functions; those that name a column they need, as a parameter without default or in an
        attribute ``column``, are checked.

    Raises
    ------
    DataError
        Naming the columns that exist.

    Examples
    --------
    >>> check_columns(["prompt", "answer"], [lambda prompts, completions, answer, **_: [1.0]])
    """
    names = sorted(columns)
    if "prompt" not in names:
        raise DataError(
            f"HybridGRPOTrainer: the data have no column 'prompt'. Columns: {', '.join(names) or 'none'}. "
            "Rename one (dataset.rename_column), or read the file with lowdim.policy.read_prompts."
        )
    for reward in rewards:
        missing = [name for name in _needed(reward) if name not in names]
        if missing:
            called = getattr(reward, "__name__", type(reward).__name__)
            raise DataError(
                f"HybridGRPOTrainer: the reward {called} needs the column {missing[0]!r}. "
                f"Columns: {', '.join(names)}. Rename one, or tell the reward its name (column=...)."
            )


def _needed(reward: Any) -> list[str]:
    reward = getattr(reward, "reward", reward)  # out of CheckedReward
    if isinstance(reward, str) or hasattr(reward, "parameters"):
        return []
    if isinstance(getattr(reward, "column", None), str):
        return [reward.column]
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.default is p.empty and p.name not in GIVEN]
