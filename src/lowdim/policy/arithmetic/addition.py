"""Addition: sums of two numbers in characters, with one right completion each."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, generator
from lowdim.errors import DataError

__all__ = ["CHARACTERS", "END", "Addition"]

CHARACTERS = "0123456789+=$"
"""The vocabulary; the last character ends a completion."""

END = CHARACTERS.index("$")


class Addition:
    """Prompts ``ab+cd=`` and completions that are the sum without padding and ``$``.

    Operands are padded with zeros, so that all prompts are equally long. The split into training and held-out
    prompts depends on the seed.

    Parameters
    ----------
    digits : int
        Digits of an operand, 1 to 4. Above 2 the prompts are a random part of all.
    order : {"usual", "reversed"}
        "reversed" writes the last digit of the sum first, padded to one length.
    prompts : int, optional
        How many prompts there are, held-out ones included; all 10,000 of two digits by default.
    held_out : int
        How many are never trained on.
    seed : int, torch.Generator or None
        Of the order of prompts.

    Attributes
    ----------
    max_length : int
        Longest completion N in tokens, its end included; a constant of the task.
    train, held_out : Tensor of shape (n,), int64
        Which prompts.

    Raises
    ------
    DataError
        If a count is impossible.

    Examples
    --------
    >>> task = Addition(seed=0)
    >>> task.text(task.prompt(torch.tensor([207]))), task.text(task.answer(torch.tensor([207])))
    (['02+07='], ['9$$$'])
    >>> task.max_length, len(task.train), len(task.held_out)
    (4, 9000, 1000)
    """

    def __init__(
        self,
        digits: int = 2,
        *,
        order: Literal["usual", "reversed"] = "usual",
        prompts: int | None = None,
        held_out: int = 1000,
        seed: Seed = 0,
    ) -> None:
        where = "Addition"
        if digits not in (1, 2, 3, 4):
            raise DataError(f"{where}: digits={digits!r} must be 1, 2, 3 or 4.")
        if order not in ("usual", "reversed"):
            raise DataError(f"{where}: order={order!r} is unknown. Use 'usual' or 'reversed'.")
        every = 10 ** (2 * digits)
        count = min(every, 10_000) if prompts is None else prompts
        if not 0 < held_out < count <= every:
            raise DataError(
                f"{where}: held_out={held_out} of {count} prompts do not fit; there are {every} prompts of "
                f"{digits} digits, and some must be left for training. Lower held_out or prompts."
            )
        self.digits, self.order = digits, order
        self.prompt_length = 2 * digits + 2
        self.max_length = digits + 2
        chosen = torch.randperm(every, generator=generator(seed))[:count]
        self.held_out, self.train = chosen[:held_out], chosen[held_out:]

    def prompt(self, which: Tensor) -> Tensor:
        """Return the characters of prompts.

        Parameters
        ----------
        which : Tensor of shape (n,), int64
            First operand times 10^digits plus second operand.

        Returns
        -------
        Tensor of shape (n, 2 digits + 2), int64
        """
        base = 10**self.digits
        plus, equals = (torch.full((len(which), 1), CHARACTERS.index(sign)) for sign in "+=")
        first, second = self._digits(which // base, self.digits), self._digits(which % base, self.digits)
        return torch.cat([first, plus, second, equals], dim=1)

    def answer(self, which: Tensor) -> Tensor:
        """Return the right completions, filled up with ``$``.

        Parameters
        ----------
        which : Tensor of shape (n,), int64

        Returns
        -------
        Tensor of shape (n, max_length), int64
        """
        base = 10**self.digits
        total = which // base + which % base
        written = self._digits(total, self.digits + 1)
        out = torch.full((len(which), self.max_length), END)
        if self.order == "reversed":
            out[:, :-1] = written.flip(1)
            return out
        # Leading zeros go, but the last digit stays.
        lengths = 1 + sum((total >= 10**power).long() for power in range(1, self.digits + 1))
        where = torch.arange(self.digits + 1) + (self.digits + 1 - lengths)[:, None]
        kept = torch.arange(self.digits + 1) < lengths[:, None]
        out[:, :-1] = written.gather(1, where.clamp(max=self.digits)).where(kept, END)
        return out

    def noisy_answer(self, which: Tensor, *, probability: float, seed: Seed = None) -> Tensor:
        """Return completions of which some have one random digit replaced by a random one.

        What learns from them keeps some entropy, as a base model does.

        Parameters
        ----------
        which : Tensor of shape (n,), int64
        probability : float
            That a completion is touched (a replaced digit may come out right).
        seed : int, torch.Generator or None

        Returns
        -------
        Tensor of shape (n, max_length), int64
        """
        source = generator(seed)
        out = self.answer(which)
        lengths = (out != END).sum(1)
        place = (torch.rand(len(which), generator=source) * lengths).long()
        digit = torch.randint(10, (len(which),), generator=source)
        touched = torch.rand(len(which), generator=source) < probability
        rows = touched.nonzero().squeeze(1)
        out[rows, place[rows]] = digit[rows]
        return out

    def reward(self, which: Tensor, completions: Tensor) -> Tensor:
        """Return 1 for completions that are the sum and its end, 0 for all others.

        Parameters
        ----------
        which : Tensor of shape (n,), int64
        completions : Tensor of shape (n, max_length), int64
            Filled up with ``$`` after their end.

        Returns
        -------
        Tensor of shape (n,), float32
        """
        return (completions == self.answer(which)).all(dim=1).float()

    def text(self, tokens: Tensor) -> list[str]:
        """Return rows of tokens (n, length) as text."""
        return ["".join(CHARACTERS[token] for token in row) for row in tokens.tolist()]

    @staticmethod
    def _digits(numbers: Tensor, length: int) -> Tensor:
        powers = 10 ** torch.arange(length - 1, -1, -1)
        return numbers[:, None] // powers % 10
