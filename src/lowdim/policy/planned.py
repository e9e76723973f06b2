"""A plan: what was measured before a Hybrid-GRPO run, what it will cost, and whether it will pay."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lowdim.errors import DataError
from lowdim.policy.memory import MemoryPlan
from lowdim.policy.prospects import Prospects
from lowdim.policy.steptime import ModelTimes, PassTime, Shape, TokenTime, break_even, step_seconds
from lowdim.runs import atomic_json, read_json

if TYPE_CHECKING:
    import pandas

__all__ = ["Plan"]

FORMAT = 1

ALL_ZERO = 0.4
"""Above this share of prompts without any success nobody learns (method page, section 6.3)."""

SAMPLE_SIZE = 0.1
"""Below this effective sample size the large policy's clipped update need not go uphill (section 6.1)."""

ROWS = 512
"""Rollouts from which on an effective sample size is worth a verdict."""


@dataclass(frozen=True)
class Plan:
    """What was measured on a few prompts, and what follows for the run.

    Parameters
    ----------
    shape : Shape
        Rows and lengths of a step.
    small, large : ModelTimes
        Seconds of both policies' parts of a step.
    parameters : tuple of int
        Of the small and the large policy.
    memory : tuple of MemoryPlan
        Bytes under each plan.
    prospects : Prospects or None
        Rewards, lengths and distances; None where only times were measured.
    device : str
        Where.
    seconds : float
        What planning took.

    Examples
    --------
    >>> fast = ModelTimes({8: TokenTime((0,), (0.1,))}, PassTime(0.001), PassTime(0.003))
    >>> slow = ModelTimes({8: TokenTime((0,), (1.0,))}, PassTime(0.010), PassTime(0.030))
    >>> found = Plan(Shape(1, 8, 8, 0, 100, 100), fast, slow, (1, 8), (), None, "cpu", 0.0)
    >>> round(found.saving, 2), found.pays
    (0.63, True)
    """

    shape: Shape
    small: ModelTimes
    large: ModelTimes
    parameters: tuple[int, int]
    memory: tuple[MemoryPlan, ...]
    prospects: Prospects | None
    device: str
    seconds: float

    @property
    def step_seconds(self) -> dict[str, dict[str, float]]:
        """Seconds of every part of a step: "grpo_large", "grpo_small" and "hybrid"."""
        return step_seconds(self.small, self.large, shape=self.shape)

    def total(self, method: str) -> float:
        """Return the seconds of a step.

        Parameters
        ----------
        method : {"grpo_large", "grpo_small", "hybrid", "separate"}
            "separate" is GRPO on both, one after the other.

        Returns
        -------
        float
        """
        found = {name: sum(parts.values()) for name, parts in self.step_seconds.items()}
        return found["grpo_large"] + found["grpo_small"] if method == "separate" else found[method]

    @property
    def saving(self) -> float:
        """Share of GRPO-large's step that Hybrid-GRPO saves; negative where it costs."""
        return 1 - self.total("hybrid") / self.total("grpo_large")

    @property
    def saving_of_both(self) -> float:
        """The same against training both policies separately by GRPO."""
        return 1 - self.total("hybrid") / self.total("separate")

    @property
    def generation_share(self) -> float:
        """Share of GRPO-large's step that is generation."""
        return self.step_seconds["grpo_large"]["generate"] / self.total("grpo_large")

    @property
    def break_even(self) -> int | None:
        """Completion length, in tokens, from which on it saves time; None if none below 32,768 does."""
        return break_even(self.small, self.large, shape=self.shape)

    @property
    def pays(self) -> bool:
        """Whether time is saved and nothing speaks against learning."""
        return self.saving > 0 and not self.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons against the run as it is planned, each with a remedy."""
        found = []
        seen = self.prospects
        if seen is not None and seen.all_zero > ALL_ZERO:
            found.append(
                f"{seen.all_zero:.0%} of {seen.prompts} prompts have no success among {seen.rollouts} "
                f"rollouts of the small model (more than {ALL_ZERO:.0%}): neither model learns from them, "
                "and the large one was damaged in such runs. Take easier prompts, train the small model on "
                "solutions first, or start from a compressed copy of the large one."
            )
        if seen is not None and seen.sample_size < SAMPLE_SIZE:
            found.append(
                f"The models are far apart: the effective sample size of the large model's ratios is "
                f"{seen.sample_size:.2f} ({seen.sample_size_rows:,} rollouts), below {SAMPLE_SIZE:g}, so its "
                "updates need not improve it. Take a smaller large model, distill the small one first, raise "
                "alpha, or cap the ratios (ratio_cap=3)."
            )
        if self.saving <= 0:
            found.append(
                f"Hybrid-GRPO takes {-self.saving:.0%} more time per step than GRPO on the large model: "
                f"generation is {self.generation_share:.0%} of that step, too little to be worth the "
                f"scoring. {self._longer()}"
            )
        if seen is not None and seen.truncated > 0.5:
            found.append(
                f"{seen.truncated:.0%} of the small model's completions were cut off. Raise "
                "max_completion_length."
            )
        return tuple(found)

    def _longer(self) -> str:
        length = self.break_even
        if length is None:
            return "No completion length changes that; use GRPO, or a smaller small model."
        return f"It would save time from completions of about {length:,} tokens on."

    @property
    def verdict(self) -> tuple[str, ...]:
        """The result in sentences, warnings last."""
        hybrid, alone = self.total("hybrid"), self.total("grpo_large")
        more = "less" if self.saving > 0 else "more"
        both = "less" if self.saving_of_both > 0 else "more"
        told = [
            f"A step of Hybrid-GRPO takes {hybrid:.3g} s, of GRPO on the large model {alone:.3g} s: "
            f"{abs(self.saving):.0%} {more}; against GRPO on both models, one after the other, "
            f"{abs(self.saving_of_both):.0%} {both}."
        ]
        if self.saving > 0:
            told.append(self._longer().replace("would save", "saves"))
        seen = self.prospects
        if seen is not None:
            rows = f"{seen.sample_size_rows:,} rollouts"
            few = ", few, so that it is too high" if seen.sample_size_rows < ROWS else ""
            told.append(
                f"The small model succeeds in {seen.success_small:.0%} of its rollouts, the large one in "
                f"{seen.success_large:.0%}; {seen.all_zero:.0%} of the prompts have no success among "
                f"{seen.rollouts}. They differ by {seen.kl_sequence:.2g} nats per completion; effective "
                f"sample size {seen.sample_size:.2f} ({rows}{few})."
            )
        return (*told, *self.warnings)

    def table(self) -> pandas.DataFrame:
        """Return the seconds of every part of a step, one row per part, one column per method."""
        import pandas

        frame = pandas.DataFrame(self.step_seconds).rename_axis("part")
        frame.loc["total"] = frame.sum()
        return frame

    def memory_table(self) -> pandas.DataFrame:
        """Return the gigabytes of every memory plan."""
        return MemoryPlan.table(self.memory)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, JSON-ready, with what follows from it."""
        found = asdict(self)
        if self.prospects is not None:  # JSON knows no NaN
            seen = found["prospects"]
            found["prospects"] = {name: None if value != value else value for name, value in seen.items()}
        for which in ("small", "large"):
            found[which]["tokens"] = {str(rows): times for rows, times in found[which]["tokens"].items()}
        follows = {
            "step_seconds": self.step_seconds,
            "saving": self.saving,
            "saving_of_both": self.saving_of_both,
            "generation_share": self.generation_share,
            "break_even": self.break_even,
            "pays": self.pays,
            "verdict": list(self.verdict),
        }
        return {"format": FORMAT, **found, **follows}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON.

        Parameters
        ----------
        path : path
            A file.
        """
        atomic_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read what `save` has written.

        Parameters
        ----------
        path : path

        Returns
        -------
        Plan

        Raises
        ------
        DataError
            If it is no plan of this format.
        """
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT or "shape" not in found:
            raise DataError(f"{path} holds no plan that this lowdim reads. Plan again.")

        def times(value: Mapping[str, Any]) -> ModelTimes:
            tokens = {
                int(rows): TokenTime(tuple(each["contexts"]), tuple(each["seconds"]), each["start"])
                for rows, each in value["tokens"].items()
            }
            return ModelTimes(
                tokens, PassTime(**value["score"]), PassTime(**value["update"]), value["optimizer"]
            )

        seen: dict[str, Any] | None = found["prospects"]
        if seen is not None:
            # JSON knows neither tuples nor NaN.
            seen = {name: tuple(value) if isinstance(value, list) else value for name, value in seen.items()}
            seen = {name: math.nan if value is None else value for name, value in seen.items()}
        return cls(
            shape=Shape(**found["shape"]),
            small=times(found["small"]),
            large=times(found["large"]),
            parameters=(found["parameters"][0], found["parameters"][1]),
            memory=tuple(MemoryPlan(**each) for each in found["memory"]),
            prospects=None if seen is None else Prospects(**seen),
            device=found["device"],
            seconds=found["seconds"],
        )
