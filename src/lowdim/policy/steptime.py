"""How long a training step takes with each method, from times of its parts.

With g seconds of generation, s of scoring and u of updates, Q prompts a step, M candidates and G kept:

    GRPO on the large model    g_L(QG) + u_L(QG)
    GRPO on the small model    g_S(QG) + u_S(QG)
    Hybrid-GRPO                g_S(QM) + s_S(QM) + s_L(QM) + u_S(QG) + u_L(QG)

The method page (section 7.1) sets s = u/3 per row; here scoring is timed. Every part is a function of the
completion's length, so that the length at which both take as long can be found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lowdim.errors import DataError

__all__ = ["METHODS", "ModelTimes", "PassTime", "Shape", "TokenTime", "break_even", "step_seconds"]

METHODS = ("grpo_large", "grpo_small", "hybrid")
"""What is compared; "separate" is the sum of the first two."""

PARTS = ("generate", "reward", "score_small", "score_large", "update_small", "update_large", "rest")
"""Parts of a step."""

LONGEST = 32768
"""Completions beyond this length are not looked at."""


@dataclass(frozen=True)
class TokenTime:
    """Seconds of one decoding step of a batch, by the tokens before it.

    Between the measured contexts a straight line, beyond them the last line.

    Parameters
    ----------
    contexts : tuple of int
        Tokens before the step, growing.
    seconds : tuple of float
        Of one step there.
    start : float
        Seconds until the first token: the pass over the prompt, and what `generate` prepares.

    Examples
    --------
    >>> TokenTime((0, 10), (1.0, 2.0), start=5.0).total(0, 10)
    20.0
    """

    contexts: tuple[int, ...]
    seconds: tuple[float, ...]
    start: float = 0.0

    def at(self, context: float) -> float:
        """Return the seconds of a step after `context` tokens."""
        points = list(zip(self.contexts, self.seconds, strict=True))
        if len(points) == 1:
            return points[0][1]
        last = len(points) - 1
        i = next((i for i in range(1, last) if context <= points[i][0]), last)
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        slope = (y1 - y0) / (x1 - x0)
        if x0 <= context <= x1:
            return y0 + slope * (context - x0)
        # A cache that grows never makes a step faster.
        x, y = (x1, y1) if context > x1 else (x0, y0)
        return max(y + max(slope, 0.0) * (context - x), 0.0)

    def total(self, prompt: float, tokens: float) -> float:
        """Return the seconds of `start` and of many steps: the integral over their contexts.

        Parameters
        ----------
        prompt : float
            Tokens of the prompt.
        tokens : float
            Steps.

        Returns
        -------
        float
        """
        end = prompt + tokens
        knots = [prompt, *(c for c in self.contexts if prompt < c < end), end]
        areas = [(right - left) * (self.at(left) + self.at(right)) / 2 for left, right in pairwise(knots)]
        return self.start + sum(areas)


@dataclass(frozen=True)
class PassTime:
    """Seconds of a pass over whole sequences, per row: ``linear x + quadratic x^2`` of their length x.

    The quadratic part is the attention's.

    Parameters
    ----------
    linear, quadratic : float
        Seconds per token, and per token squared.

    Examples
    --------
    >>> PassTime.through([(10, 1.0), (20, 2.4)]).seconds(30) > 3
    True
    """

    linear: float
    quadratic: float = 0.0

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> PassTime:
        """Return the pass time through one or two measured points.

        Parameters
        ----------
        points : sequence of (float, float)
            Length and seconds.

        Returns
        -------
        PassTime
            With no negative part: where the points bend down, a straight line through the longest.
        """
        x, y = points[-1]
        if len(points) == 1 or points[0][0] == x:
            return cls(y / x)
        (x0, y0) = points[0]
        quadratic = (y / x - y0 / x0) / (x - x0)
        linear = y0 / x0 - quadratic * x0
        if quadratic < 0:
            return cls(y / x)
        return cls(linear, quadratic) if linear >= 0 else cls(0.0, y / x**2)

    def seconds(self, tokens: float) -> float:
        """Return the seconds of one row of `tokens` tokens."""
        return self.linear * tokens + self.quadratic * tokens**2


@dataclass(frozen=True)
class ModelTimes:
    """What one policy takes for its parts of a step.

    Parameters
    ----------
    tokens : mapping of int to TokenTime
        Decoding by the number of rows in the batch.
    score, update : PassTime
        One row's forward pass without gradient, and forward and backward pass.
    optimizer : float
        Seconds of clipping and the optimizer's step.

    Examples
    --------
    >>> times = ModelTimes({8: TokenTime((0,), (0.1,))}, PassTime(0.001), PassTime(0.003), 0.5)
    >>> times.generate(8, prompt=10, tokens=101)
    10.0
    """

    tokens: Mapping[int, TokenTime]
    score: PassTime
    update: PassTime
    optimizer: float = 0.0

    def generate(self, rows: int, *, prompt: float, tokens: float) -> float:
        """Return the seconds of writing `rows` completions at once.

        Parameters
        ----------
        rows : int
            One of the measured numbers, or one between or beyond them (a straight line in the rows).
        prompt, tokens : float
            Longest prompt and longest completion of the batch.

        Returns
        -------
        float
        """
        known = sorted(self.tokens)
        if not known:
            raise DataError("ModelTimes: no decoding has been timed.")
        # The pass over the prompt gives the first token.
        spent = {size: self.tokens[size].total(prompt, max(tokens - 1, 0)) for size in known}
        if rows in spent:
            return spent[rows]
        if len(known) == 1:
            return spent[known[0]] * max(rows / known[0], 1.0)
        line = TokenTime(tuple(known), tuple(spent[size] for size in known))
        return line.at(rows)


@dataclass(frozen=True)
class Shape:
    """Rows and lengths of a step.

    Parameters
    ----------
    prompts : int
        Q, prompts of a step.
    candidates, keep_rollouts : int
        M and G.
    prompt_length : float
        Tokens of the longest prompt.
    small_length, large_length : float
        Tokens of the longest completion in a batch of the small and of the large model.
    reward : float
        Seconds of the reward function per rollout.
    overhead : float
        Seconds of a step that are none of the parts.
    """

    prompts: int
    candidates: int
    keep_rollouts: int
    prompt_length: float
    small_length: float
    large_length: float
    reward: float = 0.0
    overhead: float = 0.0


def step_seconds(small: ModelTimes, large: ModelTimes, *, shape: Shape) -> dict[str, dict[str, float]]:
    """Compute what every part of a step takes with every method.

    Parameters
    ----------
    small, large : ModelTimes
        Measured.
    shape : Shape
        Of the step.

    Returns
    -------
    dict of str to dict
        Method of `METHODS` -> part -> seconds.

    Examples
    --------
    >>> fast = ModelTimes({8: TokenTime((0,), (0.1,))}, PassTime(0.001), PassTime(0.003))
    >>> slow = ModelTimes({8: TokenTime((0,), (1.0,))}, PassTime(0.010), PassTime(0.030))
    >>> shape = Shape(1, 8, 8, 0, 100, 100)
    >>> found = step_seconds(fast, slow, shape=shape)
    >>> {method: round(sum(parts.values())) for method, parts in found.items()}
    {'grpo_large': 123, 'grpo_small': 12, 'hybrid': 45}
    """
    kept, all_rows = shape.prompts * shape.keep_rollouts, shape.prompts * shape.candidates
    P = shape.prompt_length

    def grpo(times: ModelTimes, length: float, which: str) -> dict[str, float]:
        parts = dict.fromkeys(PARTS, 0.0)
        parts["generate"] = times.generate(kept, prompt=P, tokens=length)
        parts["reward"] = kept * shape.reward
        parts[f"update_{which}"] = kept * times.update.seconds(P + length) + times.optimizer
        parts["rest"] = shape.overhead
        return parts

    L = shape.small_length
    hybrid = dict.fromkeys(PARTS, 0.0)
    hybrid["generate"] = small.generate(all_rows, prompt=P, tokens=L)
    hybrid["reward"] = all_rows * shape.reward
    hybrid["rest"] = shape.overhead
    for which, times in (("small", small), ("large", large)):
        hybrid[f"score_{which}"] = all_rows * times.score.seconds(P + L)
        hybrid[f"update_{which}"] = kept * times.update.seconds(P + L) + times.optimizer
    return {
        "grpo_large": grpo(large, shape.large_length, "large"),
        "grpo_small": grpo(small, L, "small"),
        "hybrid": hybrid,
    }


def break_even(small: ModelTimes, large: ModelTimes, *, shape: Shape) -> int | None:
    """Find the shortest completion from which on Hybrid-GRPO takes no longer than GRPO on the large model.

    Parameters
    ----------
    small, large : ModelTimes
        Measured.
    shape : Shape
        Its lengths are replaced, the same for both models.

    Returns
    -------
    int or None
        Tokens, to an eighth; None if it is longer than 32,768 tokens.

    Examples
    --------
    >>> cheap = ModelTimes({8: TokenTime((0,), (0.1,), start=9.0)}, PassTime(0.001), PassTime(0.003))
    >>> dear = ModelTimes({8: TokenTime((0,), (1.0,))}, PassTime(0.010), PassTime(0.030))
    >>> break_even(cheap, dear, shape=Shape(1, 8, 8, 0, 1, 1))
    13
    """

    def saves(length: float) -> bool:
        found = step_seconds(small, large, shape=_with_length(shape, length))
        return sum(found["hybrid"].values()) <= sum(found["grpo_large"].values())

    length = 8.0
    while length <= LONGEST:
        if saves(length):
            return math.ceil(length)
        length *= 1.125
    return None


def _with_length(shape: Shape, length: float) -> Shape:
    return replace(shape, small_length=length, large_length=length)
