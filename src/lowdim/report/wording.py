"""Numbers as people read them: 22.7 million, 43.2 MB, 1 min 20 s, 1.4 times as fast."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = [
    "by",
    "bytes_text",
    "count",
    "duration",
    "millions",
    "ms",
    "percent",
    "signed_percent",
    "times",
]


def by(sizes: Iterable[object]) -> str:
    r"""Return sizes as people write them.

    Examples
    --------
    >>> by([384, 1536]) == "384 \N{MULTIPLICATION SIGN} 1536"
    True
    """
    return " \N{MULTIPLICATION SIGN} ".join(str(size) for size in sizes)


def count(number: float, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun in the right form.

    Examples
    --------
    >>> count(1, "layer"), count(1200, "layer")
    ('1 layer', '1,200 layers')
    """
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"


def millions(number: float) -> str:
    """Return a count of parameters to three digits.

    Examples
    --------
    >>> millions(22_713_216), millions(6_738_415_616), millions(1_530), millions(12)
    ('22.7 M', '6.74 B', '1.53 K', '12')
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.9995 * size:
            return f"{_three(number / size)} {unit}"
    return f"{number:.0f}"


def bytes_text(number: float) -> str:
    """Return a size in decimal units, as file managers show it.

    Examples
    --------
    >>> bytes_text(90_868_376), bytes_text(512)
    ('90.9 MB', '512 B')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:
            return f"{_three(number / size)} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Return a time span.

    Examples
    --------
    >>> duration(0.42), duration(42.4), duration(492), duration(7300)
    ('0.42 s', '42 s', '8 min 12 s', '2 h 1 min')
    """
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ms(number: float) -> str:
    """Return a time given in milliseconds, to three digits; only from ten seconds on in seconds.

    Examples
    --------
    >>> ms(8.1234), ms(2345.0), ms(23450.0)
    ('8.12 ms', '2,345 ms', '23.4 s')
    """
    return f"{_three(number / 1000)} s" if number >= 9999.5 else f"{_three(number)} ms"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage.

    Examples
    --------
    >>> percent(0.4998), percent(0.0004), percent(1.0)
    ('50.0 %', '0.04 %', '100 %')
    """
    if fraction == 1:
        return "100 %"
    value = 100 * fraction
    if value and abs(value) < 0.1:
        return f"{value:.1g} %"
    # Never round what is not all to "100.0 %".
    return f"{min(value, 99.9):.1f} %" if fraction < 1 else f"{value:.1f} %"


def signed_percent(fraction: float) -> str:
    """Return a change as a percentage with its sign.

    Examples
    --------
    >>> signed_percent(0.079), signed_percent(-0.5)
    ('+7.9 %', '−50.0 %')
    """
    if not math.isfinite(fraction):
        return "without bound"
    sign = "+" if fraction >= 0 else "\N{MINUS SIGN}"
    return f"{sign}{percent(abs(fraction))}"


def times(ratio: float) -> str:
    """Return what a speed ratio (time before / time after) means, as the end of a sentence on the model.

    Examples
    --------
    >>> times(1.41), times(0.8), times(1.01)
    ('is 1.41 times as fast', 'is slower: it takes 1.25 times as long', 'is about as fast')
    """
    if 0.97 < ratio < 1.03:
        return "is about as fast"
    return (
        f"is {ratio:.2f} times as fast" if ratio > 1 else f"is slower: it takes {1 / ratio:.2f} times as long"
    )


def _three(number: float) -> str:
    """Return a number in [0, 10000) with three digits or more and no exponent."""
    if number >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"
