"""The reward of a right answer: a formula, a number, or a text."""

from __future__ import annotations

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lowdim.errors import DataError
from lowdim.policy.rewards.contract import Reward, texts_of
from lowdim.policy.rewards.final import FinalAnswer, final_answer, gold_answer, last_formula
from lowdim.policy.rewards.math_verify import checker_command
from lowdim.policy.rewards.numbers import Quantity, read_answer, read_number, same_number
from lowdim.policy.rewards.pool import KillablePool

__all__ = ["AnswerReward", "answer_reward", "check_gold"]

Kind = Literal["latex", "number", "exact"]

LONGEST = 512  # characters of a formula
DEEPEST = 32  # brackets in one another
REMEMBERED = 8192  # verdicts; the rollouts of a prompt give the same few answers
SHOWN = 80

_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_DRESS = " \t\n.,;:!?*_`\"'$()[]{}"


def answer_reward(
    column: str = "answer",
    *,
    kind: Kind = "latex",
    timeout: float = 5.0,
    workers: int = 2,
    total: float = 120.0,
) -> Reward:
    r"""Reward 1 for a right final answer, 0 for any other completion.

    Parameters
    ----------
    column : str, default "answer"
        Column with the gold answers; of a solution that marks its answer, the answer counts.
    kind : {"latex", "number", "exact"}
        "latex": equal formulas by math-verify (1/2 is 0.5, ``2x + x^2`` is ``x(x+2)``), in processes that are
        killed when they take too long. "number": equal numbers, as `read_number` reads them; fast, without
        another library. "exact": the same text, but for case, white space and the punctuation around.
    timeout : float, default 5.0
        Seconds for one formula, twice; after that the reward is 0 and counted.
    workers : int, default 2
        Processes for formulas, of each rank.
    total : float, default 120.0
        Seconds for the formulas of one call; those not compared by then are rewarded 0 and counted.

    Returns
    -------
    AnswerReward
        By TRL's contract; it can be pickled. Which part of a completion is its answer: see `final_answer`. If
        there are several marked answers the last counts.

    Raises
    ------
    DataError
        If a setting is out of range.
    MissingExtra
        If kind is "latex" and math-verify is not installed.

    Examples
    --------
    >>> reward = answer_reward(kind="number")
    >>> reward(["?"] * 3, ["So #### 1,234", r"\boxed{1234.0}", "3 or 1234"], answer=["1234"] * 3)
    [1.0, 1.0, 0.0]
    >>> reward(["?"], [[{"role": "assistant", "content": "The answer is $72."}]], answer=["72"])
    [1.0]
    """
    return AnswerReward(column, kind=kind, timeout=timeout, workers=workers, total=total)


class AnswerReward:
    """What `answer_reward` returns.

    Parameters
    ----------
    column : str
    kind : {"latex", "number", "exact"}
    timeout : float
    workers : int
    total : float

    Attributes
    ----------
    counts : dict of str to int
        Completions so far: "all", "none" (without an answer), "undecided" (formulas that took too long).

    Raises
    ------
    DataError
        If a setting is out of range.

    Examples
    --------
    >>> AnswerReward("answer", kind="exact").check(["blue", ""])
    Traceback (most recent call last):
    ...
    lowdim.errors.DataError: answer_reward: 1 of 2 gold answers cannot be read (kind='exact'), ...
    """

    def __init__(
        self,
        column: str = "answer",
        *,
        kind: Kind = "latex",
        timeout: float = 5.0,
        workers: int = 2,
        total: float = 120.0,
    ) -> None:
        if kind not in ("latex", "number", "exact"):
            raise DataError(f"answer_reward: kind={kind!r} is unknown. Use 'latex', 'number' or 'exact'.")
        if not (timeout > 0 and total > 0 and workers >= 1):
            raise DataError(
                f"answer_reward: timeout={timeout} and total={total} must be above 0 seconds, "
                f"workers={workers} at least 1."
            )
        self.column, self.kind = column, kind
        self.__name__ = f"{kind}_answer"
        self.counts = {"all": 0, "none": 0, "undecided": 0}
        self.pool: KillablePool | None = None
        if kind == "latex":
            self.pool = KillablePool(
                checker_command(timeout=timeout), workers=workers, timeout=timeout, total=total
            )
        self._verdicts: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_verdicts": OrderedDict()}

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return 1.0 or 0.0 for each completion."""
        if self.column not in columns:
            raise DataError(
                f"answer_reward: the data have no column {self.column!r}. Their columns are: "
                f"{', '.join(columns) or 'none'}. Name the one with the gold answers: column='...'."
            )
        golds = [gold_answer(str(gold)) for gold in columns[self.column]]
        answers = [final_answer(text) for text in texts_of(completions)]
        before = self.counts["undecided"]
        right = {"number": self._numbers, "exact": self._texts, "latex": self._formulas}[self.kind](
            golds, answers
        )
        none = sum(answer is None for answer in answers)
        self.counts["all"] += len(answers)
        self.counts["none"] += none
        if log_metric is not None and answers:
            log_metric(f"{self.__name__}/none", none / len(answers))
            log_metric(f"{self.__name__}/undecided", (self.counts["undecided"] - before) / len(answers))
        return [float(is_right) for is_right in right]

    def check(self, golds: Sequence[Any]) -> None:
        """Refuse gold answers that no completion could meet.

        Parameters
        ----------
        golds : sequence of str
            All of the training data; done before the training starts.

        Raises
        ------
        DataError
            With the count, the first row and its text.
        """
        texts = [gold_answer(str(gold)) if gold is not None else "" for gold in golds]
        if self.kind == "number":
            fine = [read_number(text) is not None for text in texts]
        elif self.kind == "exact":
            fine = [bool(_bare_text(text)) for text in texts]
        else:
            fine = self._formulas(texts, [FinalAnswer(text, "box") for text in texts], gold_is_checked=True)
        if not all(fine):
            first = fine.index(False)
            raise DataError(
                f"answer_reward: {fine.count(False)} of {len(fine)} gold answers cannot be read "
                f"(kind={self.kind!r}), the first in row {first + 1}: {str(golds[first])[:SHOWN]!r}. Remove "
                "these rows, or use another kind ('exact' compares texts)."
            )

    def close(self) -> None:
        """End the processes, if there are any; the next call starts new ones."""
        if self.pool is not None:
            self.pool.close()

    def _numbers(self, golds: list[str], answers: list[FinalAnswer | None]) -> list[bool]:
        right = []
        for gold, answer in zip(golds, answers, strict=True):
            wanted = _known(read_number(gold), gold, self.kind)
            given = None if answer is None else read_answer(answer)
            right.append(given is not None and same_number(wanted, given))
        return right

    def _texts(self, golds: list[str], answers: list[FinalAnswer | None]) -> list[bool]:
        return [
            answer is not None and _bare_text(answer.text) == _known(_bare_text(gold), gold, self.kind)
            for gold, answer in zip(golds, answers, strict=True)
        ]

    def _formulas(
        self, golds: list[str], answers: list[FinalAnswer | None], *, gold_is_checked: bool = False
    ) -> list[bool]:
        """Decide what needs no algebra here, and ask the checkers about the rest, each pair once."""
        pairs = [(gold, _formula(answer)) for gold, answer in zip(golds, answers, strict=True)]
        decided = [_decide(gold, given, trivial=not gold_is_checked) for gold, given in pairs]
        open_pairs = list(
            dict.fromkeys(
                pair
                for pair, known in zip(pairs, decided, strict=True)
                if known is None and pair not in self._verdicts
            )
        )
        if open_pairs and self.pool is not None:
            asked = [{"gold": gold, "answer": answer} for gold, answer in open_pairs]
            for pair, reply in zip(open_pairs, self.pool.ask(asked), strict=True):
                if reply is None:
                    self.counts["undecided"] += 1
                elif not reply["parsed"] and not gold_is_checked:
                    _known(None, pair[0], self.kind)
                self._verdicts[pair] = reply is not None and reply["equal"]
        right = [
            self._verdicts[pair] if known is None else known
            for pair, known in zip(pairs, decided, strict=True)
        ]
        while len(self._verdicts) > REMEMBERED:
            self._verdicts.popitem(last=False)
        return right


def check_gold(rewards: Sequence[Reward], dataset: Any) -> None:
    """Refuse data whose gold answers a reward cannot read, before the training starts.

    Parameters
    ----------
    rewards : sequence of callable
        Those of `answer_reward` are checked, also inside `checked` and `total_reward`.
    dataset : Prompts or datasets.Dataset

    Raises
    ------
    DataError
        If a column is missing or a gold answer cannot be read.

    Examples
    --------
    >>> from lowdim.policy import read_prompts
    >>> check_gold([answer_reward(kind="number")], read_prompts([{"prompt": "2 + 3?", "answer": "5"}]))
    """
    table = getattr(dataset, "dataset", dataset)
    stack = list(rewards)
    while stack:
        reward = stack.pop()
        if isinstance(reward, AnswerReward):
            if reward.column not in table.column_names:
                raise DataError(
                    f"answer_reward: the data have no column {reward.column!r}. Their columns are: "
                    f"{', '.join(table.column_names)}. Name the one with the gold answers: column='...'."
                )
            reward.check(table[reward.column])
        stack += getattr(reward, "rewards", [])
        if hasattr(reward, "reward"):
            stack.append(reward.reward)


def _known(found: Any, gold: str, kind: str) -> Any:
    if not found:
        raise DataError(
            f"answer_reward: the gold answer {gold[:SHOWN]!r} cannot be read (kind={kind!r}). Check the "
            "data with check_gold before the training, and remove such rows."
        )
    return found


def _formula(answer: FinalAnswer | None) -> str:
    r"""Return the formula of an answer, "" if there is none that is worth a look."""
    if answer is None:
        return ""
    text = answer.text
    if not answer.marked:
        text = text[-LONGEST:]
        formula = last_formula(text)
        if formula is None:
            number = read_answer(answer)
            formula = text.rstrip(" .") if number is None else str(number.value)
        text = formula
    text = _WORDS.sub(lambda match: f" {match[1]} ", text) if text.startswith("\\text") else text
    return text.strip().strip("$").strip().removesuffix(".") if len(text) <= LONGEST else ""


def _decide(gold: str, given: str, *, trivial: bool) -> bool | None:
    """Return the verdict where it takes no algebra, None where it does."""
    if not given or "\x00" in given or _depth(given) > DEEPEST:
        return False
    if trivial and given == gold:
        return True
    wanted, number = read_number(gold), read_number(given)
    if wanted is None or number is None or not (wanted.bare and number.bare):
        return None
    if same_number(wanted, number):
        return True
    return None if _endless(wanted) else False


def _endless(quantity: Quantity) -> bool:
    """Whether its decimals never end: then rounded ones are for math-verify to judge."""
    rest = quantity.value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest != 1


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _bare_text(text: str) -> str:
    text = unicodedata.normalize("NFC", _WORDS.sub(r"\1", text))
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return " ".join(text.split()).strip(_DRESS).casefold()
