"""How much memory two policies on one device need, phase by phase, and how many rows then fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdim.errors import BudgetError
from lowdim.policy.size import ModelSize, Precision

if TYPE_CHECKING:
    import pandas

__all__ = ["PLANS", "MemoryPlan", "memory_plans"]

PLANS = ("full", "lora", "bf16", "offload")
"""The plans that are compared."""

CHECKPOINT_ABOVE = 1_000_000_000
"""Parameters from which on gradient checkpointing is assumed."""


@dataclass(frozen=True)
class _State:
    """Bytes of one policy outside the activations."""

    weights: int
    gradients: int
    moments: int
    precision: Precision

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments


def _state(size: ModelSize, *, how: str, rank: int) -> _State:
    P = size.parameters
    if how == "lora":
        # Adapters stay in float32: 4 bytes each for weights and gradients, 8 for the moments.
        A = rank * size.adapted
        return _State(2 * P + 4 * A, 4 * A, 8 * A, "bfloat16")
    if how == "bf16":
        return _State(2 * P, 2 * P, 4 * P, "bfloat16")
    if how == "frozen":
        return _State(2 * P, 0, 0, "bfloat16")
    return _State(4 * P, 4 * P, 8 * P, "autocast")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of two policies on one device under one plan.

    Parameters
    ----------
    name : str
        "full", "lora", "bf16" or "offload".
    state : int
        Weights, gradients and moments of both: what section 7.3's arithmetic counts.
    phases : mapping of str to int
        Bytes in each phase: "generate", "score", "update_small", "update_large".
    rows : int
        Largest micro-batch that fits the device; 0 where not even one row does, and -1 without a device.
    rollouts : int
        Rollouts that the small policy can write at once; likewise.
    note : str
        What the plan is and costs.

    Examples
    --------
    >>> size = ModelSize(1_000_000, 2, 64, 128, 2, 64, 1000, 2000)
    >>> plans = memory_plans(size, size, candidates=4, prompt_length=8, completion_length=8)
    >>> [plan.name for plan in plans], plans[0].state
    (['full', 'lora', 'bf16', 'offload'], 32000000)
    """

    name: str
    state: int
    phases: Mapping[str, int]
    rows: int = -1
    rollouts: int = -1
    note: str = ""

    @property
    def peak(self) -> int:
        """Bytes in the fullest phase."""
        return max(self.phases.values())

    @property
    def fits(self) -> bool | None:
        """Whether all phases fit the device; None without a device."""
        return None if self.rows < 0 else self.rows > 0 and self.rollouts > 0

    @staticmethod
    def table(plans: tuple[MemoryPlan, ...]) -> pandas.DataFrame:
        """Return one row per plan, in gigabytes; with a device, how many rows and rollouts fit.

        Parameters
        ----------
        plans : tuple of MemoryPlan

        Returns
        -------
        pandas.DataFrame
        """
        import pandas

        rows = [
            {
                "plan": plan.name,
                "state_GB": plan.state / 1e9,
                **{f"{phase}_GB": held / 1e9 for phase, held in plan.phases.items()},
                **({} if plan.rows < 0 else {"rows": plan.rows, "rollouts": plan.rollouts}),
                "note": plan.note,
            }
            for plan in plans
        ]
        return pandas.DataFrame(rows).set_index("plan")


_NOTES = {
    "full": "float32 weights and AdamW moments of both, 16 bytes per parameter",
    "lora": "large in bfloat16 with adapters of rank {rank}; small in full",
    "bf16": "everything in bfloat16, 8 bytes per parameter; small updates are rounded away"
    ", so watch the loss",
    "offload": "as full; the moments of the large policy ({moments:.0f} GB) wait in the memory of the CPU "
    "while the small one writes, there and back each step",
}


def memory_plans(
    small: ModelSize,
    large: ModelSize | None = None,
    *,
    candidates: int,
    prompt_length: int,
    completion_length: int,
    rows: int = 1,
    device_bytes: int | None = None,
    lora_rank: int = 64,
    checkpointing: bool | None = None,
    engine: bool = False,
    train_large: bool = True,
) -> tuple[MemoryPlan, ...]:
    """Compute what every plan needs in every phase of a step.

    Both policies stay on the device, and so do the gradients of the small one until the large one has its
    own. The two updates come one after the other, so that only one of them holds activations.

    Parameters
    ----------
    small, large : ModelSize
        The policies; `large` is None where only one is trained.
    candidates : int
        Rollouts that are written at once.
    prompt_length, completion_length : int
        The longest, in tokens.
    rows : int
        Rows of a micro-batch.
    device_bytes : int, optional
        Memory of the device; with it, the largest micro-batch that fits is sought.
    lora_rank : int
        Of the large policy's adapters under the plan "lora", on all linear layers.
    checkpointing : bool, optional
        Gradient checkpointing; by default for models above 1B parameters.
    engine : bool
        Whether an inference engine holds a second copy of the small policy in bfloat16.
    train_large : bool
        False for a frozen large policy in bfloat16.

    Returns
    -------
    tuple of MemoryPlan
        In the order of `PLANS`. Allocator fragmentation is not counted: leave a tenth free.

    Raises
    ------
    BudgetError
        If a count is below 1.

    References
    ----------
    hybrid-grpo.md, section 7.3: 147 GB in full for 7.6B and 1.54B parameters.

    Examples
    --------
    >>> size = ModelSize(1_000_000, 2, 64, 128, 2, 64, 1000, 2000)
    >>> full, *_ = memory_plans(
    ...     size, size, candidates=4, prompt_length=8, completion_length=8, device_bytes=40_000_000
    ... )
    >>> full.fits, full.rows > 1
    (True, True)
    """
    counts = {
        "candidates": candidates,
        "prompt_length": prompt_length,
        "completion_length": completion_length,
        "rows": rows,
        "lora_rank": lora_rank,
    }
    for name, count in counts.items():
        if count < 1:
            raise BudgetError(f"memory_plans: {name}={count}, expected a positive number.")
    tokens = prompt_length + completion_length
    return tuple(
        _plan(
            *(name, small, large, candidates, rows, tokens, device_bytes, lora_rank, checkpointing),
            engine=engine,
            train_large=train_large,
        )
        for name in PLANS
    )


def _plan(
    name: str,
    small: ModelSize,
    large: ModelSize | None,
    candidates: int,
    rows: int,
    tokens: int,
    device_bytes: int | None,
    rank: int,
    checkpointing: bool | None,
    *,
    engine: bool,
    train_large: bool,
) -> MemoryPlan:
    own = _state(small, how="bf16" if name == "bf16" else "full", rank=rank)
    how = {"lora": "lora", "bf16": "bf16"}.get(name, "full") if train_large else "frozen"
    other = _State(0, 0, 0, "bfloat16") if large is None else _state(large, how=how, rank=rank)
    held = own.weights + own.moments + other.weights + other.moments
    held += 2 * small.parameters if engine else 0
    away = other.moments if name == "offload" else 0

    def activations(size: ModelSize | None, state: _State, count: int) -> int:
        if size is None:
            return 0
        again = size.parameters > CHECKPOINT_ABOVE if checkpointing is None else checkpointing
        return size.activation_bytes(count, tokens, precision=state.precision, checkpointing=again)

    def phases(rollouts: int, count: int) -> dict[str, int]:
        # Scoring keeps nothing for a backward pass: the input and output of one layer, as if checkpointed.
        scoring = max(
            size.activation_bytes(count, tokens, precision=state.precision, checkpointing=True)
            - count * tokens * size.layers * size.width * (4 if state.precision == "float32" else 2)
            for size, state in ((small, own), (large or small, other if large else own))
        )
        cache = small.cache_bytes(rollouts * tokens, precision=own.precision)
        found = {
            "generate": held - away + cache,
            "score": held - away + scoring,
            "update_small": held + own.gradients + activations(small, own, count),
        }
        if large is not None and train_large:
            later = held + own.gradients + other.gradients + activations(large, other, count)
            found["update_large"] = later
        return found

    fit, write = -1, -1
    if device_bytes is not None:
        fit = _largest(lambda count: max(phases(1, count).values()) <= device_bytes)
        write = _largest(lambda rollouts: phases(rollouts, 1)["generate"] <= device_bytes)
    return MemoryPlan(
        name,
        own.total + other.total + (2 * small.parameters if engine else 0),
        phases(candidates, rows),
        fit,
        write,
        _NOTES[name].format(rank=rank, moments=other.moments / 1e9),
    )


def _largest(fits: Callable[[int], bool]) -> int:
    """Return the largest count that fits, 0 if none does; at most about a million."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
