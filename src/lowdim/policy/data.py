"""Prompts at the door: files, Hub data sets and lists become a data set that a trainer can use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.errors import DataError
from lowdim.policy.rewards.final import gold_answer
from lowdim.policy.rows import library, rows_of
from lowdim.policy.templates import fill_template
from lowdim.runs import digest

if TYPE_CHECKING:
    import datasets

__all__ = ["Prompts", "check_disjoint", "read_prompts", "split_prompts"]

PROMPT_COLUMNS = ("prompt", "question", "problem", "query")
ANSWER_COLUMNS = ("answer", "final_answer", "solution")
# Names that TRL gives to reward functions itself.
RESERVED = {
    "prompts",
    "completions",
    "completion",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
}
SHOWN = 60  # characters of a prompt in a message


@dataclass(frozen=True, eq=False)
class Prompts:
    r"""Prompts with their answers, and what was done to get them.

    Parameters
    ----------
    dataset : datasets.Dataset
        Columns ``prompt`` (text or messages), ``answer`` (text, if there are answers) and the others of the
        source.
    name : str
        The file or data set, without folders.
    keys : tuple of str
        Hash of each question before the template, white space and case aside: what tells two prompts apart.
    notes : tuple of str
        Sentences for the reader: which columns were taken, what was left out.

    Examples
    --------
    >>> prompts = read_prompts([{"question": "2 + 3?", "answer": "It is 5.\n#### 5"}])
    >>> len(prompts), prompts.dataset[0]["answer"]
    (1, '5')
    """

    dataset: datasets.Dataset
    name: str
    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, rows: Iterable[int]) -> Prompts:
        """Return some of the prompts.

        Parameters
        ----------
        rows : iterable of int
            Their positions.

        Returns
        -------
        Prompts
        """
        chosen = [int(row) for row in rows]
        return replace(
            self, dataset=self.dataset.select(chosen), keys=tuple(self.keys[row] for row in chosen)
        )


def read_prompts(
    source: Any,
    *,
    split: str | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    template: str | None = None,
    chat: bool = False,
    limit: int | None = None,
) -> Prompts:
    r"""Read prompts and answers, and refuse what a training would stumble over later.

    Parameters
    ----------
    source : str, Path, datasets.Dataset, sequence of mappings or of str
        A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, the name of a Hub data set (``owner/name`` or
        ``owner/name@configuration``), or rows.
    split : str, optional
        Of a Hub data set; "train" by default.
    prompt, answer : str, optional
        The columns. By default ``prompt``, else question, problem or query; ``answer``, else final_answer or
        solution. Without a column of answers the data set has none.
    template : str, optional
        As in `fill_template`; None leaves the prompts as they are.
    chat : bool, default False
        Whether text becomes messages (the tokenizer has a chat template).
    limit : int, optional
        The first so many rows only.

    Returns
    -------
    Prompts
        A solution that marks its answer ("#### 72" of GSM8K, ``\boxed{72}``) is replaced by that answer, and
        kept in the column ``solution``. Questions that repeat are taken once.

    Raises
    ------
    DataError
        If the source cannot be read, a column is missing (those there are listed), a prompt is empty or of
        a wrong type, an answer is missing, or a column has a name that reward functions cannot be given.
    MissingExtra
        If the package datasets is not installed.

    Examples
    --------
    >>> prompts = read_prompts([{"problem": "Half of 1?", "solution": r"So \boxed{\frac12}."}])
    >>> prompts.dataset[0]["answer"]
    '\\frac12'
    >>> prompts.notes[0]
    "prompts from the column 'problem', answers from the column 'solution'"
    """
    rows, name = rows_of(source, split=split, limit=limit)
    if not rows:
        raise DataError(f"read_prompts: {name} holds no rows. Give at least one prompt.")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    asked = _column(columns, prompt, PROMPT_COLUMNS, name, "prompt")
    answered = _column(columns, answer, ANSWER_COLUMNS, name, "answer", needed=False)
    if taken := sorted((set(columns) - {asked, answered}) & RESERVED):
        raise DataError(
            f"read_prompts: {name} has a column {taken[0]!r}, a name that the trainer gives to reward "
            "functions itself. Rename the column."
        )
    notes: list[str] = []
    if asked != "prompt" or answered not in ("answer", None):
        notes.append(
            f"prompts from the column {asked!r}, "
            + (f"answers from the column {answered!r}" if answered else "no answers")
        )
    questions = [
        _question(row.get(str(asked)), number, asked, name) for number, row in enumerate(rows, start=1)
    ]
    golds, solutions = _golds(rows, answered, name, notes)
    keys = [question_key(question) for question in questions]
    kept = _first_of_each(keys, golds, notes)

    renamed = {"prompt", "answer", asked, answered}
    table: dict[str, list[Any]] = {
        "prompt": [
            questions[i]
            if template is None and not chat
            else fill_template(questions[i], template=template or "plain", chat=chat)
            for i in kept
        ]
    }
    if golds:
        table["answer"] = [golds[i] for i in kept]
    for column in columns:
        if column not in renamed:
            table[column] = [rows[i].get(column) for i in kept]
    if solutions and "solution" not in table:
        table["solution"] = [solutions[i] for i in kept]
    try:
        dataset = library().Dataset.from_dict(table)
    except (
        Exception
    ) as error:  # Arrow's own classes: a column of mixed types, prompts part text part messages
        raise DataError(
            f"read_prompts: the rows of {name} do not form a table ({error}). Give every column one type."
        ) from error
    return Prompts(dataset, name, tuple(keys[i] for i in kept), tuple(notes))


def split_prompts(prompts: Prompts, *, evaluation: float | int, seed: int = 0) -> tuple[Prompts, Prompts]:
    """Set prompts aside for evaluation, at random.

    Parameters
    ----------
    prompts : Prompts
    evaluation : float or int
        A share below 1, or a number of prompts.
    seed : int, default 0

    Returns
    -------
    train, evaluation : Prompts
        Each in the order of the source; they share no question.

    Raises
    ------
    DataError
        If one of them would be empty.

    Examples
    --------
    >>> prompts = read_prompts([{"prompt": f"{n} + 1?", "answer": n + 1} for n in range(10)])
    >>> train, held_out = split_prompts(prompts, evaluation=0.2)
    >>> len(train), len(held_out)
    (8, 2)
    """
    count = round(evaluation * len(prompts)) if isinstance(evaluation, float) else evaluation
    if not 0 < count < len(prompts):
        raise DataError(
            f"split_prompts: evaluation={evaluation} of {len(prompts)} prompts leaves {len(prompts) - count} "
            f"to train and {count} to evaluate. Leave at least one for each."
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    return prompts.select(sorted(order[count:])), prompts.select(sorted(order[:count]))


def check_disjoint(train: Prompts | datasets.Dataset, evaluation: Prompts | datasets.Dataset) -> None:
    """Refuse data whose evaluation prompts were trained on.

    Parameters
    ----------
    train, evaluation : Prompts or datasets.Dataset
        A plain data set is told by its column ``prompt``.

    Raises
    ------
    DataError
        If they share a question, white space and case aside; with the count and an example.

    Examples
    --------
    >>> one = read_prompts([{"prompt": "2 + 3?", "answer": "5"}])
    >>> check_disjoint(one, read_prompts(["2  +  3?"]))
    Traceback (most recent call last):
    ...
    lowdim.errors.DataError: check_disjoint: 1 of the 1 evaluation prompts is in the training data too, ...
    """
    seen = set(_keys(train))
    shared = [number for number, key in enumerate(_keys(evaluation)) if key in seen]
    if shared:
        dataset = evaluation.dataset if isinstance(evaluation, Prompts) else evaluation
        example = _text(dataset[shared[0]]["prompt"])[:SHOWN]
        raise DataError(
            f"check_disjoint: {len(shared)} of the {len(dataset)} evaluation prompts "
            f"{'is' if len(shared) == 1 else 'are'} in the training data too, the first: {example!r}. "
            "Evaluate on prompts that were not trained on, or set some aside with split_prompts."
        )


def question_key(question: str | Sequence[Mapping[str, Any]]) -> str:
    """Hash a question, white space and case aside.

    Parameters
    ----------
    question : str or sequence of messages

    Returns
    -------
    str
    """
    return digest(" ".join(_text(question).split()).casefold())


def _keys(prompts: Prompts | datasets.Dataset) -> Iterable[str]:
    if isinstance(prompts, Prompts):
        return prompts.keys
    if "prompt" not in prompts.column_names:
        raise DataError(
            f"check_disjoint: the data set has the columns {', '.join(prompts.column_names)} and no "
            "'prompt'. Read it with read_prompts, which finds the column."
        )
    return [question_key(question) for question in prompts["prompt"]]


def _text(question: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(question, str):
        return question
    return "\n".join(f"{message['role']}: {message['content']}" for message in question)


def _column(
    columns: list[str],
    wanted: str | None,
    usual: tuple[str, ...],
    name: str,
    what: str,
    *,
    needed: bool = True,
) -> str | None:
    there = ", ".join(map(str, columns))
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"read_prompts: {name} has no column {wanted!r}. Its columns are: {there}.")
        return wanted
    found = next((column for column in usual if column in columns), None)
    if found is None and needed:
        raise DataError(
            f"read_prompts: {name} has none of the columns {', '.join(usual)}. Its columns are: {there}. "
            f"Name the one that holds the prompts: {what}='...'."
        )
    return found


def _question(value: Any, number: int, column: str | None, name: str) -> Any:
    """Check one prompt: text, or messages with a role and a content."""
    where = f"read_prompts: row {number} of {name}"
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where} has an empty prompt (column {column!r}). Remove the row.")
        return value
    if isinstance(value, Sequence) and all(
        isinstance(message, Mapping) and "role" in message and "content" in message for message in value
    ):
        if not any(str(message["content"] or "").strip() for message in value):
            raise DataError(f"{where} has an empty prompt (column {column!r}). Remove the row.")
        return [dict(message) for message in value]
    raise DataError(
        f"{where} has a prompt of type {type(value).__name__} (column {column!r}). Expected text, or a list "
        'of messages {"role": ..., "content": ...}.'
    )


def _golds(
    rows: list[dict[str, Any]], column: str | None, name: str, notes: list[str]
) -> tuple[list[str], list[str]]:
    """Return the answers as text, and the solutions that they were taken from if there were any."""
    if column is None:
        return [], []
    given = [_as_text(row.get(column)) for row in rows]
    if missing := [number for number, text in enumerate(given, start=1) if not text.strip()]:
        raise DataError(
            f"read_prompts: {len(missing)} of the {len(rows)} rows of {name} have no answer in the column "
            f"{column!r}, the first is row {missing[0]}. Remove them, or name another column: answer='...'."
        )
    golds = [gold_answer(text) for text in given]
    taken = sum(gold != text for gold, text in zip(golds, given, strict=True))
    if not taken:
        return golds, []
    notes.append(f"{taken} answers taken out of the solutions in the column {column!r}")
    return golds, given


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return "" if isinstance(value, float) and value != value else str(value)


def _first_of_each(keys: list[str], golds: list[str], notes: list[str]) -> list[int]:
    """Return the rows whose question was not there before."""
    first: dict[str, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    repeated = len(keys) - len(first)
    if repeated:
        other = sum(bool(golds) and golds[n] != golds[first[key]] for n, key in enumerate(keys))
        notes.append(
            f"{repeated} repeated prompts left out"
            + (f", {other} of them with another answer" if other else "")
        )
    return list(first.values())
