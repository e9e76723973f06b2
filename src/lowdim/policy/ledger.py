"""What a run costs: seconds, tokens and floating-point work of each phase of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import nn

from lowdim.errors import DataError

__all__ = ["PHASES", "CostLedger", "PhaseCost", "flops_per_token"]

PHASES = (
    "hint",
    "generate",
    "reward",
    "score_small",
    "score_large",
    "update_small",
    "update_large",
    "sync",
)


def flops_per_token(model: nn.Module, *, trained: bool = False) -> float:
    """Floating-point work of a model on one token.

    Two per parameter and token forward. Backward, two more for the gradient of the activations and two for
    the gradient of each parameter that is trained: six in all for a model that is trained whole, a little
    above four with adapters. Attention's work, which grows with the length, is not counted.

    Parameters
    ----------
    model : nn.Module
        The model.
    trained : bool
        Whether the token is trained on, not only passed forward.

    Returns
    -------
    float
        Floating-point operations.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(10, 10, bias=False)
    >>> flops_per_token(layer), flops_per_token(layer, trained=True)
    (200.0, 600.0)
    """
    parameters = sum(p.numel() for p in model.parameters())
    if not trained:
        return 2.0 * parameters
    return 4.0 * parameters + 2.0 * sum(p.numel() for p in model.parameters() if p.requires_grad)


@dataclass
class PhaseCost:
    """The cost of one phase, summed over the run.

    Parameters
    ----------
    seconds : float
        Wall-clock seconds of this process.
    calls : int
        How often the phase ran.
    tokens : int
        Tokens that went through the model, prompts included, of all processes.
    completion_tokens : int
        Of these, tokens of completions.
    flops : float
        Floating-point operations of the model, all processes.

    Examples
    --------
    >>> PhaseCost(seconds=1.5).calls
    0
    """

    seconds: float = 0.0
    calls: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0


@dataclass
class CostLedger:
    """The cost of each phase of a run, over all its interruptions.

    Parameters
    ----------
    phases : dict of str to PhaseCost
        The phases that ran, by name: "hint" (the large policy writes the first tokens), "generate", "reward"
        (the reward functions), "score_small", "score_large" (log-probabilities without gradient),
        "update_small", "update_large" (forward, backward, optimizer) and "sync" (weights to the engine).
    synchronize : callable or None
        Called before the clock is read, where a device works behind it.

    Examples
    --------
    >>> ledger = CostLedger()
    >>> with ledger.phase("generate"):
    ...     ledger.add("generate", tokens=64, completion_tokens=32, flops=1e6)
    >>> ledger.table()[["phase", "tokens", "completion_tokens"]].values.tolist()
    [['generate', 64, 32]]
    """

    phases: dict[str, PhaseCost] = field(default_factory=dict)
    synchronize: Callable[[], None] | None = None

    def now(self) -> float:
        """Seconds on the clock, the device waited for."""
        if self.synchronize is not None:
            self.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside.

        Parameters
        ----------
        name : str
            One of PHASES.

        Yields
        ------
        None
        """
        start = self.now()
        try:
            yield
        finally:
            self.add(name, seconds=self.now() - start, calls=1)

    def add(
        self,
        name: str,
        *,
        seconds: float = 0.0,
        calls: int = 0,
        tokens: int = 0,
        completion_tokens: int = 0,
        flops: float = 0.0,
    ) -> None:
        """Add to a phase.

        Parameters
        ----------
        name : str
            One of PHASES.
        seconds, calls, tokens, completion_tokens, flops : float
            See :class:`PhaseCost`.

        Raises
        ------
        DataError
            If there is no such phase.
        """
        if name not in PHASES:
            raise DataError(f"CostLedger: no phase {name!r}. Phases are {', '.join(PHASES)}.")
        cost = self.phases.setdefault(name, PhaseCost())
        cost.seconds += seconds
        cost.calls += calls
        cost.tokens += int(tokens)
        cost.completion_tokens += int(completion_tokens)
        cost.flops += flops

    @property
    def seconds(self) -> float:
        """Seconds of all phases."""
        return sum(cost.seconds for cost in self.phases.values())

    @property
    def generated_flops(self) -> float:
        """Floating-point work of all tokens that were generated, prompts left out, hints included."""
        return sum(
            cost.flops * cost.completion_tokens / max(cost.tokens, 1)
            for name, cost in self.phases.items()
            if name in ("hint", "generate")
        )

    def table(self) -> pd.DataFrame:
        """One row per phase that ran, in the order of a step.

        Returns
        -------
        pandas.DataFrame
            Columns phase, seconds, share (of the seconds), calls, tokens, completion_tokens, flops.
        """
        total = self.seconds or 1.0
        rows = [
            {"phase": name, **vars(self.phases[name]), "share": self.phases[name].seconds / total}
            for name in PHASES
            if name in self.phases
        ]
        columns = ["phase", "seconds", "share", "calls", "tokens", "completion_tokens", "flops"]
        return pd.DataFrame(rows, columns=columns)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, as plain numbers."""
        return {name: dict(vars(cost)) for name, cost in self.phases.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's costs."""
        self.phases = {name: PhaseCost(**cost) for name, cost in state.items()}
