"""Settings: what a study is asked to do, checked before work is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lowdim.errors import DataError, RankError
from lowdim.incontext.baselines import BASELINES
from lowdim.incontext.door import check_angles, check_count, check_noise, check_room
from lowdim.incontext.families import FAMILIES, Linear
from lowdim.incontext.tasks import SubspaceTasks

__all__ = ["ModelName", "Settings"]

ModelName = Literal["optimal", "linear", "gpt2"]

RECIPES: dict[str, dict[str, Any]] = {
    "optimal": {"steps": 0, "batch": 0, "lr": 0.0},
    "linear": {"steps": 3000, "batch": 256, "lr": 1e-2},
    "gpt2": {"steps": 2000, "batch": 64, "lr": 2e-3},
}
"""Training by default."""

SIZES: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 64, "tokens": "paired"}
"""Of the transformer, by default."""


@dataclass(frozen=True)
class Settings:
    """Options of a study; see `study`."""

    model: str
    d: int
    r: int
    subspaces: int
    noise: float
    family: str
    toward: str | None
    n: int
    angles_deg: tuple[float, ...]
    context_lengths: tuple[int, ...]
    ranks: tuple[int, ...]
    adapt_deg: float
    adapt_steps: int
    steps: int
    batch: int
    lr: float
    n_layer: int
    n_head: int
    n_embd: int
    tokens: str
    prompts: int
    baselines: tuple[str, ...]
    seed: int
    seeds: int

    @classmethod
    def of(
        cls,
        model: str,
        *,
        context_lengths: Sequence[int] | None,
        n: int | None,
        steps: int | None,
        batch: int | None,
        lr: float | None,
        ranks: Sequence[int],
        angles_deg: Sequence[float],
        baselines: Sequence[str],
        **options: Any,
    ) -> Settings:
        """Return settings with what was left open filled in, or refuse them."""
        where = "study"
        if model not in RECIPES:
            raise DataError(f"{where}: model={model!r} is unknown. Use one of {', '.join(RECIPES)}.")
        recipe = RECIPES[model]
        _refuse_unused(model, {"steps": steps, "batch": batch, "lr": lr}, options, where)
        if n is None:
            n = 100 if model != "gpt2" else 2 * check_count("d", options["d"], where=where) + 2
        check_count("n", n, where=where)
        lengths = (n,) if context_lengths is None else tuple(context_lengths)
        found = cls(
            model=model,
            n=n,
            context_lengths=lengths,
            ranks=tuple(ranks),
            angles_deg=tuple(check_angles(list(angles_deg), where=where).reshape(-1).tolist()),
            baselines=tuple(baselines),
            steps=recipe["steps"] if steps is None else steps,
            batch=recipe["batch"] if batch is None else batch,
            lr=recipe["lr"] if lr is None else lr,
            **options,
        )
        found.check(where)
        return found

    def check(self, where: str) -> None:
        """Refuse what cannot work."""
        for name, least in (
            *(("d", 1), ("r", 1), ("subspaces", 1), ("seeds", 1), ("seed", 0), ("prompts", 2)),
            *(("adapt_steps", 1), ("n_layer", 1), ("n_head", 1), ("n_embd", 1)),
        ):
            check_count(name, getattr(self, name), where=where, least=least)
        check_noise(self.noise, where=where)
        check_room(self.d, self.r, where=where)
        check_angles(self.adapt_deg, where=where)
        if not self.angles_deg or not self.context_lengths:
            raise DataError(f"{where}: name at least one angle and one context length.")
        for n in self.context_lengths:
            check_count("context_lengths", n, where=where)
        if self.model != "optimal":
            check_count("steps", self.steps, where=where)
            check_count("batch", self.batch, where=where)
            if not 0 < self.lr < math.inf:
                raise DataError(f"{where}: lr={self.lr!r} must be a positive number.")
        if self.family not in FAMILIES:
            raise DataError(f"{where}: family={self.family!r} is unknown. Use one of {', '.join(FAMILIES)}.")
        if self.family != Linear.name and self.model != "gpt2":
            raise DataError(
                f"{where}: model={self.model!r} is for linear functions: of {self.family!r} linear attention "
                "sees no more than a linear part. Use model='gpt2'."
            )
        if self.toward not in (None, "inside", "outside", "anywhere"):
            raise DataError(
                f"{where}: toward={self.toward!r} is unknown. Use 'inside', 'outside' or 'anywhere'."
            )
        unknown = [name for name in self.baselines if name not in BASELINES]
        if unknown:
            raise DataError(f"{where}: baseline {unknown[0]!r} is unknown. Use {', '.join(BASELINES)}.")
        most, what = (self.n_embd, "the width of the model") if self.model == "gpt2" else (self.d, "d")
        least = 1 if self.model == "gpt2" else 0
        for rank in self.ranks:
            if isinstance(rank, bool) or not isinstance(rank, int) or not least <= rank <= most:
                raise RankError(
                    f"{where}: rank {rank!r} of an adapter must be an integer from {least} to {most}, {what}."
                )
        if self.model == "gpt2":
            if self.n_embd % self.n_head:
                raise DataError(
                    f"{where}: n_embd={self.n_embd} is not divisible by n_head={self.n_head}. Use a multiple."
                )
            if max(self.context_lengths) > self.n:
                raise DataError(
                    f"{where}: a context of {max(self.context_lengths)} examples and the query exceeds "
                    f"n_positions={self.n + 1} of the model, which is trained on n={self.n}. Use at most "
                    f"{self.n}, or raise n."
                )
        self.tasks(self.seed).direction(self.toward, seed=0)  # type: ignore[arg-type]

    def tasks(self, seed: int) -> SubspaceTasks:
        """Return the training tasks of a seed."""
        return SubspaceTasks(
            self.d, r=self.r, subspaces=self.subspaces, noise=self.noise, family=self.family, seed=seed
        )

    def sizes(self) -> dict[str, Any]:
        """Return the arguments of the transformer, beside d."""
        return {
            "n_positions": self.n + 1,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_embd": self.n_embd,
            "tokens": self.tokens,
        }


def _refuse_unused(model: str, training: dict[str, Any], options: dict[str, Any], where: str) -> None:
    """Refuse options that the model would ignore."""
    if model == "optimal":
        for name, value in training.items():
            if value is not None:
                raise DataError(
                    f"{where}: {name}={value!r} is of a training, and model='optimal' is a closed form. "
                    "Leave it out, or use model='linear'."
                )
    if model != "gpt2":
        for name, usual in SIZES.items():
            if options[name] != usual:
                raise DataError(
                    f"{where}: {name}={options[name]!r} is of a transformer; model={model!r} has none. "
                    "Leave it out, or use model='gpt2'."
                )
