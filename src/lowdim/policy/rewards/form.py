"""Rewards of the form: tags that must be there, and a length that must not be exceeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowdim.errors import DataError
from lowdim.policy.rewards.contract import Reward, texts_of

__all__ = ["OverlongPenalty", "TagReward", "overlong_penalty", "tag_reward"]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def tag_reward(tags: Sequence[str] = TAGS, *, each: float = 0.25, ordered: bool = False) -> Reward:
    """Reward every tag that stands in the completion exactly once.

    Parameters
    ----------
    tags : sequence of str
        The four of the template "r1" by default.
    each : float, default 0.25
        Reward of one tag.
    ordered : bool, default False
        Whether a tag counts only behind the tags before it in `tags`. The paper asks for no order.

    Returns
    -------
    TagReward
        By TRL's contract; it can be pickled.

    Raises
    ------
    DataError
        If there is no tag, or an empty one, or one twice.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, section 4 (0.25 per required tag, at most 1).

    Examples
    --------
    >>> reward = tag_reward()
    >>> reward(["?"] * 2, ["<think>2 + 3</think><answer>5</answer>", "<think><think>5</answer>"])
    [1.0, 0.25]
    """
    return TagReward(tags, each=each, ordered=ordered)


class TagReward:
    """What `tag_reward` returns.

    Parameters
    ----------
    tags : sequence of str
    each : float
    ordered : bool

    Raises
    ------
    DataError
        If there is no tag, or an empty one, or one twice.

    Examples
    --------
    >>> TagReward(["<a>", "</a>"], each=0.5, ordered=True)(["?"], ["</a><a>"])
    [0.5]
    """

    __name__ = "tags"

    def __init__(self, tags: Sequence[str] = TAGS, *, each: float = 0.25, ordered: bool = False) -> None:
        self.tags = (tags,) if isinstance(tags, str) else tuple(tags)
        self.each, self.ordered = each, ordered
        if not self.tags or not all(self.tags) or len(set(self.tags)) < len(self.tags):
            raise DataError(
                f"tag_reward: tags={self.tags} must be different texts, at least one, none empty."
            )

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the sum over the tags for each completion."""
        return [self.each * self._count(text) for text in texts_of(completions)]

    def _count(self, text: str) -> int:
        end, count = -1, 0
        for tag in self.tags:
            if text.count(tag) != 1:
                continue
            place = text.index(tag)
            if not self.ordered or place >= end:
                count += 1
                end = place + len(tag)
        return count


def overlong_penalty(max_length: int, *, buffer: int) -> Reward:
    """Punish completions that come near the largest length, so that stopping in time is learned.

    0 up to ``max_length - buffer`` tokens, then falling linearly to -1 at `max_length`, and -1 beyond.

    Parameters
    ----------
    max_length : int
        Tokens; the trainer's ``max_completion_length``.
    buffer : int
        Tokens over which the penalty grows.

    Returns
    -------
    OverlongPenalty
        By TRL's contract; it can be pickled.

    Raises
    ------
    DataError
        Unless 0 < buffer <= max_length.

    References
    ----------
    Yu et al., "DAPO", 2025, eq. 13.

    Examples
    --------
    >>> penalty = overlong_penalty(100, buffer=20)
    >>> penalty(["?"] * 4, ["a"] * 4, [[0] * 80, [0] * 90, [0] * 100, [0] * 101])
    [0.0, -0.5, -1.0, -1.0]
    """
    return OverlongPenalty(max_length, buffer=buffer)


class OverlongPenalty:
    """What `overlong_penalty` returns.

    Parameters
    ----------
    max_length : int
    buffer : int

    Raises
    ------
    DataError
        Unless 0 < buffer <= max_length.

    Examples
    --------
    >>> OverlongPenalty(100, buffer=20).__name__
    'overlong'
    """

    __name__ = "overlong"

    def __init__(self, max_length: int, *, buffer: int) -> None:
        if not 0 < buffer <= max_length:
            raise DataError(
                f"overlong_penalty: buffer={buffer} must be from 1 to max_length={max_length} tokens."
            )
        self.max_length, self.buffer = max_length, buffer

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any],
        **columns: Any,
    ) -> list[float | None]:
        """Return the penalty of each completion."""
        free = self.max_length - self.buffer
        return [0.0 - min(max(len(ids) - free, 0) / self.buffer, 1.0) for ids in completion_ids]
