"""Options that several verbs of ``lowdim policy`` share, and what their words mean."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdim.errors import DataError

if TYPE_CHECKING:
    from lowdim.policy import Prompts

__all__ = [
    "DATA",
    "METHOD",
    "MODELS",
    "RUN",
    "AnswerColumn",
    "Candidates",
    "Data",
    "Device",
    "Keep",
    "Length",
    "PromptColumn",
    "Rewards",
    "Seed",
    "Split",
    "Template",
    "TemplateName",
    "calm",
    "chat_of",
    "option",
    "read",
    "rewards_of",
    "value_of",
]

MODELS, DATA, METHOD, RUN = "The models", "The data", "The method", "The run"


class TemplateName(StrEnum):
    """Prompt templates on offer."""

    plain = "plain"
    r1 = "r1"
    boxed = "boxed"


@contextmanager
def calm() -> Iterator[None]:
    """Keep a remark of torch about torchao, made while both are imported, off the screen.

    Yields
    ------
    None
    """
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def option(*names: str, panel: str, text: str, **more: Any) -> Any:
    """Return an option in a panel of the help page."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Data = Annotated[
    str,
    option(
        "--data",
        panel=DATA,
        text="Prompts with answers: JSONL, Parquet, CSV or a Hub data set (owner/name).",
        show_default=False,
    ),
]
Split = Annotated[str | None, option("--split", panel=DATA, text="Of a Hub data set.", show_default=False)]
PromptColumn = Annotated[
    str | None,
    option(
        "--prompt-column",
        panel=DATA,
        text="Else prompt, question, problem or query.",
        show_default=False,
    ),
]
AnswerColumn = Annotated[
    str | None,
    option("--answer-column", panel=DATA, text="Else answer, final_answer or solution.", show_default=False),
]
Template = Annotated[
    TemplateName,
    option("--template", panel=DATA, text="How a question is put: with tags to fill, or an answer to box."),
]
Rewards = Annotated[
    list[str],
    option(
        "--reward",
        panel=DATA,
        text="latex, number, exact, tags, overlong:MAX:BUFFER, or module:function; NAME=WEIGHT weighs it. "
        "Repeat it for a sum. The first one is the accuracy.",
        show_default=False,
    ),
]
Candidates = Annotated[
    int | None,
    option("--candidates", panel=METHOD, text="M, rollouts per prompt: 14.", show_default=False),
]
Keep = Annotated[
    int | None,
    option("--keep-rollouts", panel=METHOD, text="G of them are trained on: 8.", show_default=False),
]
Length = Annotated[
    int | None,
    option("--max-tokens", panel=METHOD, text="Longest completion N, in tokens: 256.", show_default=False),
]
Seed = Annotated[int, option("--seed", panel=RUN, text="For everything random.")]
Device = Annotated[str, option("--device", panel=RUN, text="auto, cpu or cuda.")]


def rewards_of(given: list[str], *, column: str = "answer") -> tuple[list[Any], list[float]]:
    """Return rewards and weights of ``NAME`` or ``NAME=WEIGHT``.

    Parameters
    ----------
    given : list of str
    column : str
        Column with the gold answers.

    Returns
    -------
    rewards : list of callable
    weights : list of float

    Raises
    ------
    DataError
        If there is none, or a weight is no number.
    """
    from lowdim.policy.rewards import named_reward

    if not given:
        raise DataError("--reward: there is none. Add one, such as --reward latex or --reward exact.")
    rewards, weights = [], []
    for text in given:
        name, equals, weight = text.rpartition("=")
        try:
            weights.append(float(weight) if equals else 1.0)
        except ValueError:
            raise DataError(f"--reward {text}: expected NAME or NAME=WEIGHT, such as tags=0.5.") from None
        rewards.append(named_reward(name if equals else text, column=column))
    return rewards, weights


def read(
    source: str,
    *,
    split: str | None,
    prompt: str | None,
    answer: str | None,
    template: TemplateName,
    chat: bool,
    limit: int | None = None,
) -> Prompts:
    """Read prompts as the options say."""
    from lowdim.policy import read_prompts

    return read_prompts(
        source,
        split=split,
        prompt=prompt,
        answer=answer,
        template=None if template is TemplateName.plain else template.value,
        chat=chat,
        limit=limit,
    )


def chat_of(model: str) -> bool:
    """Whether a model's tokenizer has a chat template, so that prompts become messages."""
    from lowdim.policy.sources import tokenizer_of

    return getattr(tokenizer_of(model), "chat_template", None) is not None


def value_of(text: str) -> tuple[str, Any]:
    """Return name and value of ``name=value``: a number, true, false, none, or text.

    Examples
    --------
    >>> value_of("ratio_cap=3"), value_of("center=all"), value_of("compaction=true")
    (('ratio_cap', 3), ('center', 'all'), ('compaction', True))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise DataError(f"--set {text}: expected NAME=VALUE, such as ratio_cap=3.")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name.strip(), words[value.lower()]
    for kind in (int, float):
        try:
            return name.strip(), kind(value)
        except ValueError:
            continue
    return name.strip(), value
