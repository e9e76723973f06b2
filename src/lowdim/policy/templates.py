"""Prompt templates: how a question is put so that the answer can be found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowdim.errors import DataError

__all__ = ["TEMPLATES", "fill_template"]

#: What each named template asks for, before the question.
TEMPLATES = {
    "plain": "",
    "r1": (
        "Think about the question first, then answer it. Write your thoughts between <think> and </think> "
        "and nothing but the final answer between <answer> and </answer>."
    ),
    "boxed": r"Work through the question step by step and put nothing but the final answer in \boxed{}.",
}

Messages = list[dict[str, Any]]


def fill_template(
    question: str | Sequence[dict[str, Any]], *, template: str = "plain", chat: bool = False
) -> str | Messages:
    r"""Make a prompt of a question.

    Parameters
    ----------
    question : str or sequence of messages
        Text, or messages ``{"role": ..., "content": ...}`` of a conversation, whose last is the user's.
    template : str, default "plain"
        "plain" adds nothing. "r1" asks for ``<think>``, ``</think>``, ``<answer>``, ``</answer>``, as
        `tag_reward` counts them. "boxed" asks for the answer in ``\boxed{}``. Any other text is a template
        of your own and must hold ``{question}``.
    chat : bool, default False
        Whether a text becomes messages, for a tokenizer that has a chat template.

    Returns
    -------
    str or list of messages
        Messages where `chat` is set or the question was a conversation. The instruction is the system's
        message of a new conversation, and goes before the last user's text of one that was there.

    Raises
    ------
    DataError
        If the template is unknown, or the conversation does not end with the user.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, tables 5 and 6 (the same roles, other words).

    Examples
    --------
    >>> print(fill_template("2 + 3?", template="boxed"))
    Work through the question step by step and put nothing but the final answer in \boxed{}.
    <BLANKLINE>
    Question: 2 + 3?
    Answer:
    >>> [message["role"] for message in fill_template("2 + 3?", template="r1", chat=True)]
    ['system', 'user']
    >>> fill_template("2 + 3?", template="{question} Reply with one number.")
    '2 + 3? Reply with one number.'
    """
    if template not in TEMPLATES and "{question}" not in template:
        raise DataError(
            f"fill_template: template={template!r} is unknown. Use one of {', '.join(TEMPLATES)}, or a text "
            "that holds {question}."
        )
    instruction = TEMPLATES.get(template)
    if not isinstance(question, str):
        return _in_conversation([dict(message) for message in question], template, instruction)
    if instruction is None:
        text = template.replace("{question}", question)
        return [{"role": "user", "content": text}] if chat else text
    if chat:
        system = [{"role": "system", "content": instruction}] if instruction else []
        return [*system, {"role": "user", "content": question}]
    return f"{instruction}\n\nQuestion: {question}\nAnswer:" if instruction else question


def _in_conversation(messages: Messages, template: str, instruction: str | None) -> Messages:
    if instruction == "":
        return messages
    last = messages[-1] if messages else {}
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        raise DataError(
            "fill_template: the conversation does not end with a user's message of text, so a template has "
            "no place. Use template='plain'."
        )
    text = last["content"]
    filled = template.replace("{question}", text) if instruction is None else f"{instruction}\n\n{text}"
    return [*messages[:-1], {**last, "content": filled}]
