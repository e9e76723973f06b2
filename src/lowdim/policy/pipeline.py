"""Pipeline: `codistill`, from two models and prompts to two trained models, in a run directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lowdim.errors import DataError, RunError
from lowdim.policy.data import Prompts, check_disjoint, read_prompts
from lowdim.policy.examination import Examination
from lowdim.policy.job import Job
from lowdim.policy.phases import Callback, Progress, quiet
from lowdim.policy.result import HybridGRPOResult
from lowdim.policy.rewards.answer import check_gold
from lowdim.policy.rewards.contract import name_of
from lowdim.policy.settings import METHODS, PAIRED, managed, settings_of, telling
from lowdim.policy.sources import (
    adapter_facts,
    digests,
    is_big,
    is_maker,
    jsonable,
    made,
    name_of_model,
    processes,
    tokenizer_of,
)
from lowdim.runs import Run, digest, plain

__all__ = ["codistill"]

SHOWN = 6
"""Prompts whose completions before and after the training are kept in the report."""


def codistill(
    small: Any,
    *,
    large: Any = None,
    rewards: Any,
    train: Any,
    evaluate: Any = None,
    config: Any = None,
    output: str | os.PathLike[str],
    continue_steps: int = 0,
    accuracy: Any = None,
    eval_steps: int | None = None,
    eval_samples: int = 4,
    eval_batch: int = 64,
    tokenizer: Any = None,
    small_peft_config: Any = None,
    large_peft_config: Any = None,
    progress: Progress | None = None,
    callback: Callback | None = None,
    resume: bool = False,
    restart: bool = False,
) -> HybridGRPOResult:
    """Train a small and a large policy at once from the small one's rollouts, resumably, and measure both.

    Only the small model generates. It learns from the reward and from how probable its completions are for
    the large model; the large one learns off-policy from the same completions. The paper calls the method
    CoDistill-GRPO.

    Parameters
    ----------
    small : path, Hub id, PreTrainedModel or callable
        The model that generates; with method "grpo" or "pods" the only one. A callable makes it, in a folder
        of the run: ``small(folder, progress) -> (path, facts)``; the facts go into the report.
    large : path, Hub id or PreTrainedModel, optional
        For methods "hybrid" and "kdrl"; it must have the small one's tokenizer.
    rewards : callable or sequence of callable
        As TRL calls them: ``f(prompts, completions, completion_ids, **columns) -> list of float or None``.
    train, evaluate : Prompts, datasets.Dataset, path, Hub id or rows
        See `read_prompts`. No prompt may be in both. Without `evaluate` nothing is evaluated, and the guard
        for the large model has nothing to judge.
    config : HybridGRPOConfig or mapping, optional
        Settings of the trainer, see `HybridGRPOConfig`; ``max_steps`` is 100 by default, unless
        ``num_train_epochs`` is given.
    output : path
        Run directory: checkpoints while it runs, then both models, tables and report.json.
    continue_steps : int
        Afterwards train the large model alone, by GRPO on its own rollouts, with a fresh optimizer.
    accuracy : callable, optional
        The reward for evaluations, 1 for a right completion; by default the first of `rewards`.
    eval_steps : int, optional
        Steps between evaluations; a fifth of the steps by default, 100 where epochs are counted.
    eval_samples, eval_batch : int
        Completions of each prompt, and how many are written at a time.
    tokenizer : optional
        By default the small model's.
    small_peft_config, large_peft_config : peft.PeftConfig, optional
        Adapters to train in place of the whole model.
    progress : callable, optional
        Called with (phase, done, total, what is going on).
    callback : callable, optional
        Called with every logged row and every evaluation, as dictionaries with phase and step.
    resume, restart : bool
        Go on with the run in `output`, or throw it away.

    Returns
    -------
    HybridGRPOResult

    Raises
    ------
    DataError
        If models, data, rewards and settings do not fit together; before anything is generated.
    MissingExtra
        Without trl.
    RunError
        If the output folder is in use, holds another run, or cannot be written.
    Diverged
        If a loss or log-probability is not finite.
    KeyboardInterrupt
        If the process got SIGTERM or SIGINT: a checkpoint was written, and ``resume=True`` goes on from it to
        the weights of the uninterrupted run.

    Notes
    -----
    Under ``accelerate launch`` or ``torchrun`` all processes call it, and the first one writes.

    References
    ----------
    Kwon et al., "CoDistill-GRPO: A Co-Distillation Recipe for Efficient Group Relative Policy Optimization",
    2026, algorithm 1; continued training is its section on CT.

    Examples
    --------
    >>> result = codistill(
    ...     "Qwen/Qwen2.5-1.5B", large="Qwen/Qwen2.5-7B", rewards=reward, train="train.jsonl",
    ...     evaluate="test.jsonl", config={"max_steps": 600}, continue_steps=200, output="run",
    ... )  # doctest: +SKIP
    >>> result.table  # doctest: +SKIP
    """
    from lowdim.policy.trl import HybridGRPOConfig

    _check(small, large, continue_steps, eval_steps, eval_samples)
    given = list(rewards) if isinstance(rewards, Sequence) else [rewards]
    data = _prompts(train), None if evaluate is None else _prompts(evaluate)
    if data[1] is not None:
        check_disjoint(data[0], data[1])
    check_gold([*given, *([] if accuracy is None else [accuracy])], data[0])
    if data[1] is not None:
        check_gold([given[0] if accuracy is None else accuracy], data[1])
    settings = settings_of(config, HybridGRPOConfig)
    method = settings.get("method", "hybrid")
    _check_pair(method, large, continue_steps)
    work = Path(output) / ".work"
    settings.setdefault("gradient_checkpointing", is_big(small) or is_big(large))
    with quiet():
        args = HybridGRPOConfig(str(work / "train"), **settings, **managed())
    every = eval_steps or (max(1, args.max_steps // 5) if args.max_steps > 0 else 100)
    arguments = {
        "small": name_of_model(small),
        "large": name_of_model(large),
        "rewards": [name_of(reward) for reward in given],
        "settings": telling(settings),
        "continue_steps": continue_steps,
        "eval_steps": every,
        "eval_samples": eval_samples,
        "adapters": [adapter_facts(one) for one in (small_peft_config, large_peft_config)],
    }
    inputs = {"train": digest(*data[0].keys), **digests(small=small, large=large)}
    if data[1] is not None:
        inputs["evaluate"] = digest(*data[1].keys)
    with ExitStack() as stack:
        stack.enter_context(quiet(logs=Path(output) / "logs"))
        run = _open(stack, output, plain(jsonable(arguments)), args.seed, inputs, resume, restart)
        if run.finished:
            return HybridGRPOResult.load(run.path)
        started: dict[str, Any] = {}
        if is_maker(small):
            small, started = made(run, small, progress)
        token = tokenizer_of(small) if tokenizer is None else tokenizer
        options = {
            "samples": eval_samples,
            "batch_size": eval_batch,
            "temperature": args.temperature,
            "max_completion_length": args.max_completion_length,
            "seed": args.seed,
            "shown": SHOWN,
        }
        examination = Examination(
            data[1],
            given[0] if accuracy is None else accuracy,
            token,
            run.work / "evaluations",
            every,
            options,
        )
        job = Job(run, given, data[0], token, examination, progress, callback, started)
        job.train(small, large, args, small_peft_config, large_peft_config)
        if continue_steps:
            job.go_on(args, continue_steps)
        return job.finish(arguments, method, args.seed)


def _check(small: Any, large: Any, continue_steps: int, eval_steps: int | None, eval_samples: int) -> None:
    if small is None:
        raise DataError("codistill: there is no small model. Give a folder, a Hub id or a model.")
    if large is not None and large is small:
        raise DataError("codistill: small and large are the same object. Give a copy, or one model only.")
    for name, value, low in (
        ("continue_steps", continue_steps, 0),
        ("eval_steps", 1 if eval_steps is None else eval_steps, 1),
        ("eval_samples", eval_samples, 1),
    ):
        if value < low:
            raise DataError(f"codistill: {name}={value} must be at least {low}.")


def _check_pair(method: str, large: Any, continue_steps: int) -> None:
    if method not in METHODS:
        raise DataError(f"codistill: method={method!r} is unknown. Use one of {', '.join(METHODS)}.")
    if method in PAIRED and large is None:
        raise DataError(
            f"codistill: method={method!r} needs a large model. Give large=..., or train the small one alone "
            "with method 'grpo'."
        )
    if method not in PAIRED and large is not None:
        raise DataError(
            f"codistill: method={method!r} trains one model only, and large=... was given too. Leave it out, "
            "or use method 'hybrid'."
        )
    if continue_steps and method != "hybrid":
        raise DataError(
            f"codistill: continue_steps={continue_steps} goes on with the trained large model, and "
            f"method={method!r} trains none. Leave it out, or raise max_steps."
        )


def _prompts(given: Any) -> Prompts:
    return given if isinstance(given, Prompts) else read_prompts(given)


def _open(
    stack: ExitStack,
    output: Any,
    arguments: dict[str, Any],
    seed: int,
    inputs: dict[str, str],
    resume: bool,
    restart: bool,
) -> Run:
    """Open the run directory in the first process; the others join when it is open."""
    state = processes()
    if state.num_processes == 1:
        return stack.enter_context(_entered(output, arguments, seed, inputs, resume, restart))
    from accelerate.utils import broadcast_object_list

    run, told = None, [None]
    failed: Exception | None = None
    if state.is_main_process:
        try:
            run = stack.enter_context(_entered(output, arguments, seed, inputs, resume, restart))
        except Exception as error:
            failed, told = error, [f"{error}"]  # type: ignore[list-item]
    broadcast_object_list(told)
    if failed is not None:
        raise failed
    if told[0] is not None:
        raise RunError(f"codistill: the first process cannot open the run: {told[0]}")
    return run if run is not None else Run.join(output)


def _entered(
    output: Any, arguments: dict[str, Any], seed: int, inputs: dict[str, str], resume: bool, restart: bool
) -> Any:
    return Run.open(
        output,
        command="policy train",
        arguments=arguments,
        seed=seed,
        inputs=inputs,
        resume=resume,
        restart=restart,
    )
