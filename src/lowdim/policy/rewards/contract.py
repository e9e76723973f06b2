"""What a reward is: one number, or None, for every completion."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from lowdim.errors import DataError

__all__ = ["CheckedReward", "Reward", "TotalReward", "checked", "name_of", "texts_of", "total_reward"]

Reward = Callable[..., Sequence[float | None]]

SHOWN = 80  # characters of a value in a message


def texts_of(completions: Sequence[Any]) -> list[str]:
    """Return the text of each completion, be it text or a conversation.

    Parameters
    ----------
    completions : sequence of str or of lists of messages
        The messages that the policy wrote; of several the last with text counts.

    Returns
    -------
    list of str

    Examples
    --------
    >>> texts_of(["5", [{"role": "assistant", "content": "6"}]])
    ['5', '6']
    """
    return [
        completion if isinstance(completion, str) else _last_text(completion) for completion in completions
    ]


def _last_text(messages: Sequence[Any]) -> str:
    for message in reversed(messages):
        content = message.get("content")
        if isinstance(content, str) and content:
            return content
        if isinstance(content, list):  # content in parts, as models of text and images have it
            return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def name_of(reward: Reward) -> str:
    """Return the name under which a reward is logged.

    Parameters
    ----------
    reward : callable

    Returns
    -------
    str
    """
    return getattr(reward, "__name__", type(reward).__name__)


def checked(reward: Reward) -> Reward:
    """Wrap a reward so that what it returns is checked.

    Parameters
    ----------
    reward : callable
        ``reward(prompts, completions, completion_ids, **columns)``.

    Returns
    -------
    CheckedReward
        With the same name; it can be pickled if the reward can. A checked reward is returned as it is.

    Examples
    --------
    >>> def half(prompts, completions, completion_ids, **columns):
    ...     return [0.5]
    >>> checked(half)(prompts=["a", "b"], completions=["c", "d"], completion_ids=[[1], [2]])
    Traceback (most recent call last):
    ...
    lowdim.errors.DataError: reward half: returned 1 values for 2 completions. Return one ...
    """
    return reward if isinstance(reward, CheckedReward) else CheckedReward(reward)


class CheckedReward:
    """A reward whose values are checked: as many as completions, each None or a finite number.

    Parameters
    ----------
    reward : callable

    Raises
    ------
    DataError
        If it cannot be called.

    Examples
    --------
    >>> CheckedReward(len).__name__
    'len'
    """

    def __init__(self, reward: Reward) -> None:
        if not callable(reward):
            raise DataError(
                f"reward: {reward!r} is {type(reward).__name__}, expected a function of prompts, "
                "completions, completion_ids and the columns of the data."
            )
        self.reward = reward
        self.__name__ = name_of(reward)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the checked values, one per completion."""
        given = self.reward(
            prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )
        where = f"reward {self.__name__}"
        if hasattr(given, "tolist"):
            given = given.tolist()
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
            raise DataError(
                f"{where}: returned {type(given).__name__}, expected a list with a number or None for each "
                "completion."
            )
        if len(given) != len(completions):
            raise DataError(
                f"{where}: returned {len(given)} values for {len(completions)} completions. Return one per "
                "completion, in their order; None leaves a completion out."
            )
        return [self._number(value, row, completions) for row, value in enumerate(given)]

    def _number(self, value: Any, row: int, completions: Sequence[Any]) -> float | None:
        if value is None:
            return None
        if hasattr(value, "item"):  # numbers of numpy and torch
            with contextlib.suppress(ValueError, RuntimeError):  # of more than one entry: said below
                value = value.item()
        if isinstance(value, Real) and math.isfinite(value):
            return float(value)
        text = texts_of([completions[row]])[0]
        raise DataError(
            f"reward {self.__name__}: returned {str(value)[:SHOWN]!r} for row {row} (completion "
            f"{text[:SHOWN]!r}), expected a finite number or None. Return 0 for a completion without merit."
        )


def total_reward(rewards: Sequence[Reward], *, weights: Sequence[float] | None = None) -> Reward:
    """Add several rewards, as the trainer does.

    Parameters
    ----------
    rewards : sequence of callable
    weights : sequence of float, optional
        All 1 by default.

    Returns
    -------
    TotalReward
        None for a completion for which every reward was None; a single None counts as 0.

    Examples
    --------
    >>> def length(prompts, completions, completion_ids, **columns):
    ...     return [len(ids) for ids in completion_ids]
    >>> total_reward([length, length], weights=[1, -0.5])(["a"], ["b"], [[1, 2]])
    [1.0]
    """
    return TotalReward(rewards, weights)


class TotalReward:
    """The weighted sum of several rewards.

    Parameters
    ----------
    rewards : sequence of callable
    weights : sequence of float, optional

    Raises
    ------
    DataError
        If there is no reward, or not one finite weight for each.

    Examples
    --------
    >>> TotalReward([len, sum]).__name__
    'len+sum'
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        self.rewards = [checked(reward) for reward in rewards]
        self.weights = [1.0] * len(self.rewards) if weights is None else [float(weight) for weight in weights]
        if not self.rewards:
            raise DataError("total_reward: there is no reward. Give at least one.")
        if len(self.weights) != len(self.rewards) or not all(map(math.isfinite, self.weights)):
            raise DataError(
                f"total_reward: weights={self.weights} for {len(self.rewards)} rewards. Give one finite "
                "number for each."
            )
        self.__name__ = "+".join(map(name_of, self.rewards))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the weighted sum for each completion."""
        parts = [
            reward(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
            for reward in self.rewards
        ]
        return [
            None
            if all(value is None for value in values)
            else sum(w * v for w, v in zip(self.weights, values, strict=True) if v is not None)
            for values in zip(*parts, strict=True)
        ]
