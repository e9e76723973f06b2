"""Numbers as people write them: read exactly, or not at all."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from lowdim.policy.rewards.final import FinalAnswer

__all__ = ["Quantity", "read_answer", "read_number", "same_number"]

LONGEST = 256  # characters of a number with its unit
WINDOW = 512  # characters of a sentence that are searched for one
LARGEST_EXPONENT = 400

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_TEN = r"10\s*(?:\^|\*\*)\s*\{?\s*[+-]?\d{1,4}\s*\}?"
_POWER = rf"(?:[eE][+-]?\d{{1,4}}|\s*\*\s*{_TEN})"
_WORD = r"[^\W\d_]+(?:\s*\^\s*\{?[23]\}?|[23])?"
_WHOLE = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<money>(?:US|C|A)?[$€£¥₹]|USD|EUR|GBP)?\s*(?P<sign2>[+-]?)\s*"
    rf"(?:(?P<mixed>\d+)\s+(?P<top>\d+)/(?P<bottom>\d+)"
    rf"|(?P<one>{_DIGITS})(?:(?P<power>{_POWER})|\s*/\s*(?P<under>{_DIGITS}))?"
    rf"|(?P<only>{_TEN}))"
    r"\s*(?P<percent>%|percent\b)?\s*(?P<scale>(?i:thousand|million|billion|trillion)\b)?"
    rf"(?P<unit>(?:[\s\-./'(]*{_WORD}(?:[\s\-./'()]+{_WORD})*[\s')]*)?)(?P<end>[\s.,;:!?]*)"
)
_PIECE = re.compile(
    r"(?:(?<![\w.)])[+-])?[$€£¥₹]?(?:(?<![\w.)])-)?"
    rf"(?:\d+ \d+/\d+|{_DIGITS})(?:{_POWER}|\s*/\s*\d+(?:\.\d+)?)?\s*%?"
)
_NO_UNIT = re.compile(r"\b(?:or|and|to)\b")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_EXPONENT = re.compile(r"([+-]?\d+)\s*\}?$")
# Between two candidates of one answer: "3 or 4", "3 dollars, 4", "x = 3 and x = 4", "3 / 4 / 5", "3 4".
_JOINED = re.compile(
    r"\s*\(?\s*[a-zA-Z]*\s*(?:[,;/|&~?!.]|-|\b(?i:or|and|to|maybe|perhaps|possibly|either|else)\b|\s)*"
    r"\s*(?:[a-zA-Z]\s*=)?\s*[$€£¥₹(]*\s*"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_FRACTION = r"\\[dt]?frac\s*(?:\{([^{}]{1,80})\}|(\d))\s*(?:\{([^{}]{1,80})\}|(\d))"
_LATEX = (
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (
        re.compile(r"(\d)\s*\\[dt]?frac\s*(?:\{([^{}]{1,80})\}|(\d))\s*(?:\{([^{}]{1,80})\}|(\d))"),
        r"\1 \2\3/\4\5",
    ),
    (re.compile(r"\\[dt]?frac\s*(?:\{([^{}]{1,80})\}|(\d))\s*(?:\{([^{}]{1,80})\}|(\d))"), r"\1\2/\3\4"),
    (re.compile(r"\\(?:left|right|displaystyle|big|Big)(?![a-zA-Z])|\\!|\\\(|\\\)|\\\[|\\\]"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\\([$%#&_])"), r"\1"),
    (re.compile(r"\\times(?![a-zA-Z])|\\cdot(?![a-zA-Z])|[\u00d7\u00b7]"), "*"),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°"), " degrees "),
)
_POWERS = {"²": "^2", "³": "^3"}
_SLASH = "\u2044"  # of vulgar fractions
#: Minus signs, dashes and hyphens of Unicode.
_MINUS = dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212, 0xFE63, 0xFF0D), "-")


@dataclass(frozen=True)
class Quantity:
    """A number that was read.

    Parameters
    ----------
    value : Fraction
        Without regard to a percent sign.
    percent : bool
        Whether it has a percent sign.
    bare : bool
        Whether nothing stands beside the number: no unit, no word.

    Examples
    --------
    >>> read_number("50%")
    Quantity(value=Fraction(50, 1), percent=True, bare=True)
    """

    value: Fraction
    percent: bool = False
    bare: bool = True


def read_number(text: str) -> Quantity | None:
    r"""Read a text that is one number, with or without unit.

    Understood are thousands separators (commas, thin or plain spaces, ``{,}``), currencies before the number,
    percent, fractions (1/2, ``\frac{1}{2}``, 1 1/2), powers of ten (1.5e3, ``1.5 \times 10^{3}``), the words
    thousand to trillion, a unit behind, a period at the end, decimal digits of any script, minus signs of any
    kind; marks of writing direction are ignored. Superscripts are no digits, and "3,5" is no number.

    Parameters
    ----------
    text : str

    Returns
    -------
    Quantity or None
        None for anything else: two numbers, an expression, NaN, infinity, more than 256 characters, an
        exponent beyond 400.

    Examples
    --------
    >>> read_number("$1,234.50").value, read_number(r"\frac{1}{2}").value, read_number("72 ducks.").value
    (Fraction(2469, 2), Fraction(1, 2), Fraction(72, 1))
    >>> [read_number(text) for text in ("3 or 4", "9**9**9", "7²", "NaN", r"5\pi")]
    [None, None, None, None, None]
    """
    if len(text) > LONGEST:
        return None
    return _read(_plain(text))


def read_answer(answer: FinalAnswer) -> Quantity | None:
    """Read the number that an answer gives, if it gives one and only one.

    A marked answer is read whole; if it is a sentence, all its numbers must be the same. After "answer is"
    the first number counts, in a last line without a mark the last; where there is an equals sign, the first
    behind the last of them. A number that is joined to another one ("3 or 4", "3, 4", "3 4") is not taken.

    Parameters
    ----------
    answer : FinalAnswer

    Returns
    -------
    Quantity or None

    Examples
    --------
    >>> read_answer(FinalAnswer("16 - 3 - 4 = 9 eggs", "says")).value
    Fraction(9, 1)
    >>> read_answer(FinalAnswer("3 or 4 or 5", "says")) is None
    True
    """
    raw = answer.text[:WINDOW] if answer.mark != "none" else answer.text[-WINDOW:]
    text = _plain(raw)
    if len(raw) <= LONGEST and (whole := _read(text)) is not None:
        return whole
    pieces = [(match, _read(match.group())) for match in _PIECE.finditer(text)]
    found = [(match, quantity) for match, quantity in pieces if quantity is not None]
    if not found or _CONTROL.search(text):
        return None
    equals = text.rfind("=")
    behind = [place for place, (match, _) in enumerate(found) if match.start() > equals >= 0]
    if behind:
        place = behind[0]
    elif answer.marked:
        same = all(quantity.value == found[0][1].value for _, quantity in found)
        return found[0][1] if same else None
    else:
        place = 0 if answer.mark == "says" else len(found) - 1
    match, quantity = found[place]
    for other in (place - 1, place + 1):
        if 0 <= other < len(found) and found[other][1].value != quantity.value:
            left, right = sorted((match, found[other][0]), key=lambda piece: piece.start())
            if _JOINED.fullmatch(text[left.end() : right.start()]):
                return None
    return Quantity(quantity.value, quantity.percent, bare=False)


def same_number(gold: Quantity, answer: Quantity) -> bool:
    """Whether two numbers are equal; of one with and one without percent sign, 50 % is 50 or 0.5.

    Parameters
    ----------
    gold, answer : Quantity

    Returns
    -------
    bool

    Examples
    --------
    >>> [same_number(read_number(gold), read_number("50%")) for gold in ("50", "0.5")]
    [True, True]
    >>> same_number(read_number("5%"), read_number("500%"))
    False
    """
    if gold.value == answer.value:
        return True
    if gold.percent == answer.percent:
        return False
    share, plain = (gold, answer) if gold.percent else (answer, gold)
    return share.value / 100 == plain.value


def _plain(text: str) -> str:
    """Replace what only looks different: digits of other scripts, spaces, minus signs, dressing of LaTeX."""
    text = "".join(map(_character, text.translate(_MINUS)))
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text.strip(" \t\n*_`\"'")


def _character(character: str) -> str:
    if character.isascii():
        return character
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind == "No":  # 7² is not 72, 1½ is 1 1/2
        parts = unicodedata.normalize("NFKC", character)
        return f" {parts.replace(_SLASH, '/')}" if _SLASH in parts else _POWERS.get(character, "?")
    return "" if kind == "Cf" else " " if kind in ("Zs", "Zl", "Zp") else character


def _read(text: str) -> Quantity | None:
    for _ in range(3):  # $5$, (5), {5}, $(5)$
        if len(text) > 2 and (text[0], text[-1]) in (("$", "$"), ("(", ")"), ("{", "}")):
            text = text[1:-1].strip()
    match = _WHOLE.fullmatch(text)
    if match is None or re.search(r"\b(?:or|and|to)\b", match["unit"] or ""):
        return None
    value = _value(match)
    if value is None:
        return None
    if "-" in (match["sign"], match["sign2"]):
        value = -value
    value *= _SCALES.get((match["scale"] or "").lower(), 1)
    beside = match["unit"].strip() or match["scale"] or match["money"] or match["end"].strip(" .")
    return Quantity(value, percent=match["percent"] is not None, bare=not beside)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["mixed"] is not None:
        top, bottom = int(match["top"]), int(match["bottom"])
        return int(match["mixed"]) + Fraction(top, bottom) if bottom else None
    if match["only"] is not None:
        return _power(match["only"])
    value = _decimal(match["one"])
    if match["under"] is not None:
        under = _decimal(match["under"])
        return value / under if under else None
    if match["power"] is None:
        return value
    power = _power(match["power"])
    return None if power is None else value * power


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", "").rstrip("."))


def _power(text: str) -> Fraction | None:
    """Read e3 or 10^{3}."""
    found = _EXPONENT.search(text)
    exponent = int(found[1]) if found else LARGEST_EXPONENT + 1
    return Fraction(10) ** exponent if abs(exponent) <= LARGEST_EXPONENT else None
