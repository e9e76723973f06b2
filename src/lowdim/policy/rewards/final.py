r"""The final answer of a completion: what is marked last counts, and nothing else does."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["FinalAnswer", "final_answer", "gold_answer"]

#: Only so much of the end of a completion is looked at; no answer is longer.
TAIL = 16_384

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_SAYS = re.compile(r"(?i:\banswer)[ \t*]*(?:is\b|[:=])[ \t]*:?")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)


@dataclass(frozen=True)
class FinalAnswer:
    r"""A candidate for the answer, and how it was found.

    Parameters
    ----------
    text : str
        Without its mark.
    mark : {"box", "tag", "hashes", "says", "none"}
        ``\boxed{}``; ``<answer></answer>``; "####"; "answer is", "answer:"; or the last line.

    Examples
    --------
    >>> FinalAnswer("72", "box").marked
    True
    """

    text: str
    mark: str

    @property
    def marked(self) -> bool:
        """Whether the text is the answer alone, and not a sentence that holds it."""
        return self.mark in ("box", "tag", "hashes")


def final_answer(completion: str) -> FinalAnswer | None:
    r"""Find the final answer of a completion.

    Thoughts do not count: only what follows the last ``</think>`` is read, and a completion that was cut off
    inside ``<think>``, or inside its only marked answer, has no answer. Of the marks ``\boxed{}``,
    ``<answer></answer>`` and "####" the one that ends last counts, so a second answer replaces the first and
    several answers earn no more than one. A box inside an answer tag, or inside a box, is opened. Without a
    mark, what follows the last "answer is" or "answer:" counts, else the last line. The time taken is linear
    in the length, whatever the text.

    Parameters
    ----------
    completion : str
        Of any length; only its last 16,384 characters are read.

    Returns
    -------
    FinalAnswer or None
        None if there is nothing that could be one.

    Examples
    --------
    >>> final_answer(r"So \boxed{3}. No, it is \boxed{\frac{1}{2}}.")
    FinalAnswer(text='\\frac{1}{2}', mark='box')
    >>> final_answer("<think>perhaps 3</think> The answer is 4.")
    FinalAnswer(text='4.', mark='says')
    >>> final_answer("<think>perhaps 3, perhaps") is None
    True
    """
    end = completion.rfind("</think>")
    if end >= 0:
        completion = completion[end + len("</think>") :]
    elif "<think>" in completion:
        return None
    tail = completion[-TAIL:]
    found = _last_marked(tail)
    if found is not None:
        return found
    if any(mark in tail for mark in ("\\boxed", "\\fbox", "<answer>")):
        return None  # it was cut off inside its answer
    said = None
    for said in _SAYS.finditer(tail):  # noqa: B007  (the last one is wanted)
        pass
    behind = "" if said is None else tail[said.end() :].partition("\n")[0].strip()
    if behind.strip(" .*"):
        return FinalAnswer(behind, "says")
    line = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")
    return FinalAnswer(line, "none") if line else None


def gold_answer(solution: str) -> str:
    r"""Take the answer out of a solution that marks it; any other text is the answer.

    Parameters
    ----------
    solution : str
        Such as an answer of GSM8K ("... #### 72") or a solution of MATH (``... \boxed{72}``).

    Returns
    -------
    str
        Without white space around.

    Examples
    --------
    >>> gold_answer("3 * 24 = <<3*24=72>>72 dollars\n#### 72"), gold_answer(r"\frac{1}{2}")
    ('72', '\\frac{1}{2}')
    """
    found = _last_marked(solution[-TAIL:])
    return found.text if found is not None and found.text else solution.strip()


def last_formula(text: str) -> str | None:
    r"""Return the last formula between dollars, or in ``\(\)`` or ``\[\]``.

    Parameters
    ----------
    text : str
        One line.

    Returns
    -------
    str or None
    """
    found = None
    for found in _MATH.finditer(text):  # noqa: B007  (the last one is wanted)
        pass
    return None if found is None else next(group for group in found.groups() if group is not None).strip()


def _last_marked(text: str) -> FinalAnswer | None:
    """Return the marked answer that ends last, opened until it holds no mark of its own."""
    found = None
    for _ in range(4):  # a box in a tag, a box in a box; more is not written in good faith
        inner = _ends_last(text)
        if inner is None:
            break
        found, text = inner, inner.text
    return found


def _ends_last(text: str) -> FinalAnswer | None:
    candidates = []
    if box := _last_box(text):
        candidates.append((box[1], FinalAnswer(text[box[0] : box[1]].strip(), "box")))
    closing = text.rfind("</answer>")
    opening = text.rfind("<answer>", 0, closing) if closing >= 0 else -1
    if opening >= 0:
        inside = text[opening + len("<answer>") : closing].strip()
        candidates.append((closing, FinalAnswer(inside, "tag")))
    hashes = None
    for hashes in _HASHES.finditer(text):  # noqa: B007  (the last one is wanted)
        pass
    if hashes is not None:
        candidates.append((hashes.end(), FinalAnswer(hashes.group(1).strip(), "hashes")))
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None


def _last_box(text: str) -> tuple[int, int] | None:
    """Return start and end of the content of the box that closes last, in one pass with a stack."""
    open_braces: list[int] = []  # where the content of a box starts, -1 for another brace
    last = None
    for token in _BOX.finditer(text):
        piece = token.group()
        if piece == "{":
            open_braces.append(-1)
        elif piece == "}":
            start = open_braces.pop() if open_braces else -1
            if start >= 0:
                last = (start, token.start())
        elif piece.endswith("{") and len(piece) > 2:
            open_braces.append(token.end())
    return last
