"""Compaction: processor time of a step of GRPO through TRL, with and without rows that carry no gradient."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from benchmarks.harness import Options, Row, Skipped, Table, Timing, ratio

NAME = "compaction"
DESCRIPTION = (
    "GRPO steps on a text task of three products, Llama of 163,264 parameters, one thread: TRL's "
    "`GRPOTrainer` and ours with `compaction=True`, the same seeds, in turn. Seconds of the processor, which "
    "other work hardly stretches. A step has one generation, its rewards and one update; compaction shortens "
    "the update. The share of rows that are left is what the task gives: groups of equal rewards leave."
)
STEPS = 40
LIMIT = 0.88
"""Largest allowed ratio of our time to TRL's."""


def run(options: Options) -> Table:
    try:
        import trl  # noqa: F401
    except ImportError as missing:
        raise Skipped("TRL is not installed (extra [policy])") from missing
    from lowdim.claims.products import World

    world = World(0)
    cases = ((4, 16, LIMIT), (8, 8, None), (4, 64, None))
    rows = [_case(world, options, group, prompts, limit) for group, prompts, limit in cases]
    note = f"Threshold: at 16 prompts of 4 rollouts, at most {LIMIT:g} of TRL's time."
    return Table(NAME, DESCRIPTION, tuple(rows), (note,))


def _case(world: Any, options: Options, group: int, prompts: int, limit: float | None) -> Row:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    shares = []
    steps = STEPS // 2 if options.quick else STEPS
    for repetition in range(options.repeats(5)):
        for plain in (True, False) if repetition % 2 else (False, True):
            spent, kept = _train(world, plain, group=group, prompts=prompts, steps=steps, seed=repetition)
            seconds[plain].append(spent / steps)
            shares += [] if plain else [kept]
    ours, theirs = (Timing(tuple(seconds[plain])) for plain in (False, True))
    faster = ratio(ours, other=theirs)
    kept = sum(shares) / len(shares)
    return Row(
        case=f"{prompts} prompts of {group} rollouts",
        cells={
            "rows left": f"{kept:.0%}",
            "TRL, ms per step": f"{1e3 * theirs.median:.1f}",
            "ours": f"{1e3 * ours.median:.1f}",
            "ours is faster by": f"{faster} x",
            "share of TRL's time": f"{1 / faster.median:.2f}",
        },
        figures={"ours": ours.seconds, "trl": theirs.seconds, "kept": kept},
        met=None if limit is None else 1 / faster.median <= limit,
    )


def _train(world: Any, plain: bool, **options: Any) -> tuple[float, float]:
    """Processor seconds of a training, and the share of the rows that were left."""
    from lowdim.claims.products import trainer_of

    economies = {} if plain else {"compaction": True}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(world, folder, plain=plain, **options, **economies)
        start = time.process_time()
        trainer.train()
        spent = time.process_time() - start
    return spent, trainer.state.log_history[-1].get("compaction/kept", 1.0)
