"""Sums: the trainings behind the claims about policies, in the arithmetic world."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, cast

from lowdim.claims.declare import Trial

if TYPE_CHECKING:
    from lowdim.algebra import Operator
    from lowdim.policy.arithmetic import Addition, Decoder, Learning, Recipe

__all__ = ["Row", "cliff", "from_copy", "grpo_large", "hybrid", "small_alone", "starts"]

Row = dict[str, Any]

CONTINUED = 75
"""Steps of continued training."""

CALIBRATED = 1280
"""Completions that second moments are measured on."""

EVALUATED = 10
"""Steps between two evaluations of the large policy on the learning cliff."""


@functools.cache
def _world(quick: bool) -> tuple[Addition, Decoder, Decoder]:
    """Return the task and the two policies after their warm-up; callers copy the policies."""
    from lowdim.policy.arithmetic import Addition, large_decoder, small_decoder, warm_up

    task, small, large = Addition(seed=0), small_decoder(seed=0), large_decoder(seed=0)
    warm_up(large, task, until=0.002 if quick else 0.40, seed=0)
    warm_up(small, task, until=0.002 if quick else 0.18, seed=0)
    return task, small, large


@functools.cache
def _weak(quick: bool) -> Decoder:
    """Return a small policy that is hardly ever right."""
    from lowdim.policy.arithmetic import small_decoder, warm_up

    small = small_decoder(seed=0)
    warm_up(small, _world(quick)[0], until=0.001 if quick else 0.045, seed=0)
    return small


def _steps(trial: Trial, steps: int) -> int:
    return max(steps // 100, 1) if trial.quick else steps


def _accuracies(model: Decoder, task: Addition, who: str) -> Row:
    from lowdim.policy.arithmetic import greedy_accuracy, sampled_accuracy

    return {f"{who} sampled": sampled_accuracy(model, task), f"{who} greedy": greedy_accuracy(model, task)}


def _costs(learning: Learning) -> Row:
    ends = {"ess first": learning.ess(last=False), "ess last": learning.ess(last=True)}
    return {
        "all zero": learning.learning_cliff,
        "generated": learning.generated / 1e9,
        "work": (learning.generated + learning.scored + learning.updated) / 1e9,
        "seconds": learning.seconds,
        **({**ends, "largest ratio": learning.largest_ratio} if learning.log_weight else {}),
    }


def starts(trial: Trial) -> Row:
    """Return what the two policies can do before any reinforcement, and how far apart they are."""
    from lowdim.policy.arithmetic import closeness

    def measure() -> Row:
        task, small, large = _world(trial.quick)
        apart = dataclasses.asdict(closeness(small, large, task, seed=trial.seed))
        return {**_accuracies(small, task, "small"), **_accuracies(large, task, "large"), **apart}

    return trial.share("policy-starts", measure)


def small_alone(trial: Trial, name: str) -> Row:
    """Train the small policy alone: "grpo", "grpo-14" or "pods"."""
    from lowdim.policy.arithmetic import RECIPES, train

    def measure() -> Row:
        task, small, _ = _world(trial.quick)
        small = copy.deepcopy(small)
        learning = train(small, task, recipe=RECIPES[name], steps=_steps(trial, 300), seed=trial.seed)
        return {**_accuracies(small, task, "small"), **_costs(learning)}

    return trial.share(f"policy-small-{name}", measure)


@functools.cache
def _teacher(seed: int, quick: bool, steps: int) -> tuple[Decoder, Row]:
    """Train the large policy by GRPO; return it, and accuracies with generated work on the way."""
    from lowdim.policy.arithmetic import RECIPES, train

    task, _, large = _world(quick)
    large, way = copy.deepcopy(large), {}

    def see(step: int, learning: Learning) -> None:
        if step in (75, 150, 209, 250):
            generated = learning.generated / 1e9
            way[f"{step} steps"] = {**_accuracies(large, task, "large"), "generated": generated}

    learning = train(large, task, recipe=RECIPES["grpo"], steps=steps, seed=seed, callback=see)
    return large, {**_accuracies(large, task, "large"), **_costs(learning), "way": way}


def grpo_large(trial: Trial) -> Row:
    """Train the large policy alone by GRPO, with what it could do on the way."""
    return trial.share("policy-grpo-large", lambda: _teacher(trial.seed, trial.quick, _steps(trial, 300))[1])


def hybrid(trial: Trial, name: str, *, continued: bool = False, lr: float | None = None) -> Row:
    """Train both policies by a named recipe; the frozen teacher of "kdrl" is the large policy after GRPO."""
    from lowdim.policy.arithmetic import RECIPES

    def measure() -> Row:
        task, small, large = _world(trial.quick)
        if name == "kdrl":
            large = _teacher(trial.seed, trial.quick, _steps(trial, 300))[0]
        recipe = RECIPES[name] if lr is None else dataclasses.replace(RECIPES[name], lr=lr)
        return _train_both(trial, task, copy.deepcopy(small), copy.deepcopy(large), recipe, continued)

    key = f"policy-{name.replace(' ', '-')}"
    return trial.share(key if lr is None else f"{key}-at-{lr:g}", measure)


def cliff(trial: Trial) -> Row:
    """Train both policies from a small one that is hardly ever right, and ask the guard on the way."""
    from lowdim.policy.arithmetic import RECIPES, closeness, train
    from lowdim.policy.guards import Guards

    def measure() -> Row:
        task, _, large = _world(trial.quick)
        small, large = copy.deepcopy(_weak(trial.quick)), copy.deepcopy(large)
        before = {**_accuracies(small, task, "small"), **_accuracies(large, task, "large")}
        before |= dataclasses.asdict(closeness(small, large, task, seed=trial.seed))
        guard, way = Guards(silent=True), cast(Row, {})
        guard.evaluated(before["large sampled"])
        stop: int | None = None

        def see(step: int, learning: Learning) -> None:
            nonlocal stop
            if step % EVALUATED == 0:
                seen = _accuracies(large, task, "large")
                if stop is None and guard.evaluated(seen["large sampled"]):
                    stop = step
                    way["where the guard stops"] = {"step": step, **seen}
                if step % 50 == 0:
                    way[f"{step} steps"] = seen

        recipe, steps = RECIPES["hybrid"], _steps(trial, 300)
        learning = train(small, task, recipe=recipe, large=large, steps=steps, seed=trial.seed, callback=see)
        after = {**_accuracies(small, task, "small"), **_accuracies(large, task, "large")}
        return {"before": before, "after": after, "guard": stop, "way": way, **_costs(learning)}

    return cast(Row, trial.share("policy-cliff", measure))


def _calibration(large: Decoder, task: Addition) -> float:
    """Return the work of the completions that second moments are measured on, as long as right answers."""
    from lowdim.policy.arithmetic import END, weights_of

    answers = task.answer(task.train)
    length = float((answers == END).long().argmax(1).float().mean()) + 1
    return 2 * weights_of(large) * CALIBRATED * length


def _train_both(
    trial: Trial, task: Addition, small: Decoder, large: Decoder, recipe: Recipe, continued: bool
) -> Row:
    from lowdim.policy.arithmetic import RECIPES, train

    steps = _steps(trial, 300)
    learning = train(small, task, recipe=recipe, large=large, steps=steps, seed=trial.seed)
    row = {**_accuracies(small, task, "small"), **_accuracies(large, task, "large"), **_costs(learning)}
    if continued:
        more = train(
            large, task, recipe=RECIPES["grpo"], steps=_steps(trial, CONTINUED), seed=1000 + trial.seed
        )
        row["continued"] = {**_accuracies(large, task, "large"), **_costs(more)}
    return row


def from_copy(
    trial: Trial,
    name: str,
    *,
    structure: str = "lowrank",
    rank: int | None = None,
    keep: float | None = None,
    weighted: bool = False,
    healing: Row | None = None,
    alone: bool = False,
    reinforced: bool = True,
    recipe: str = "hybrid",
) -> Row:
    """Compress the large policy, heal the copy, and train both (or the copy `alone`, by GRPO)."""
    from lowdim.algebra import Blast, LowRank
    from lowdim.policy.arithmetic import RECIPES, closeness, compressed, heal, train, weights_of

    classes: dict[str, type[Operator]] = {"lowrank": LowRank, "blast": Blast}

    def measure() -> Row:
        task, _, large = _world(trial.quick)
        large = copy.deepcopy(large)
        small = compressed(
            large,
            structure=classes[structure],
            rank=rank,
            keep=keep,
            task=task if weighted else None,
            rows=CALIBRATED,
            seed=trial.seed,
        )
        before = dataclasses.asdict(closeness(small, large, task, seed=trial.seed))
        given = dict(healing or {"steps": 100})
        if trial.quick:
            given = {"steps": 2, "fresh": 1}
        sampled = heal(small, large, task, seed=trial.seed, **given) if given["steps"] else 0.0
        if weighted:
            sampled += _calibration(large, task)
        row: Row = {
            "weights": weights_of(small),
            "before": before,
            "healed": {
                **dataclasses.asdict(closeness(small, large, task, seed=trial.seed)),
                **_accuracies(small, task, "small"),
            },
            "healing generated": sampled / 1e9,
        }
        if alone:
            learning = train(small, task, recipe=RECIPES["grpo"], steps=_steps(trial, 300), seed=trial.seed)
            return {**row, **_accuracies(small, task, "small"), **_costs(learning)}
        if not reinforced:
            return row
        return {**row, **_train_both(trial, task, small, large, RECIPES[recipe], continued=True)}

    return cast(Row, trial.share(f"policy-copy-{name}", measure))
