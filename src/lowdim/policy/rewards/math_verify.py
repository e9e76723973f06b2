r"""Whether two formulas are equal, by math-verify: a program that a `KillablePool` runs.

math-verify hands text to a parser and a computer algebra that may take for ever or all memory, and its own
time limit is an alarm signal, which works in a main thread only and does not interrupt the arithmetic of
long integers. So it runs here: as a script without torch, one question at a time, under limits that the
operating system keeps. A question is ``{"gold": ..., "answer": ...}``, the reply ``{"parsed": bool, "equal":
bool}``, where `parsed` is about the gold answer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["checker_command"]

MEMORY = 2 << 30  # bytes of address space


def checker_command(*, timeout: float, memory: int = MEMORY) -> list[str]:
    """Return the command that starts a checker.

    Parameters
    ----------
    timeout : float
        Seconds of processor time for one question, after which the operating system ends the checker: its
        owner may be gone.
    memory : int
        Bytes of address space.

    Returns
    -------
    list of str

    Raises
    ------
    MissingExtra
        If math-verify is not installed.

    Examples
    --------
    >>> checker_command(timeout=5.0)[-2:]  # doctest: +SKIP
    ['6', '2147483648']
    """
    if importlib.util.find_spec("math_verify") is None:
        from lowdim.errors import MissingExtra

        raise MissingExtra("math-verify", extra="policy", purpose="compare formulas")
    # -P: the folder of this file, which has the name of the library, is not searched.
    return [sys.executable, "-P", os.path.abspath(__file__), str(int(timeout) + 1), str(memory)]


def _load() -> Callable[[str, str], dict[str, Any]]:
    import logging

    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    # The text is one answer: the first thing found in it is it, and text that is no formula equals nothing.
    options: dict[str, Any] = {
        "extraction_config": [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
        "fallback_mode": "no_fallback",
        "extraction_mode": "first_match",
        "parsing_timeout": None,
    }

    def compare(gold: str, answer: str) -> dict[str, Any]:
        right = parse(f"${gold}$", **options)
        given = parse(f"${answer}$", **options) if right else []
        equal = bool(given) and verify(right, given, timeout_seconds=None)
        return {"parsed": bool(right), "equal": bool(equal)}

    # Parser and algebra build their tables on the first use, which is nobody's question.
    compare("x^2 + 2x + 1", "(x + 1)^2")
    return compare


def _serve(seconds: int, memory: int) -> None:
    """Answer lines until there are no more."""
    questions = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the parser writes what it does not understand
        os.dup2(nowhere, descriptor)
    compare = _load()
    _limit(memory)
    replies.write(b"ready\n")
    for line in questions:
        asked = json.loads(line)
        _limit_time(seconds)
        try:
            found = compare(asked["gold"], asked["answer"])
        except BaseException as error:  # whatever it is, it is the answer's: RecursionError, MemoryError
            found = {"parsed": True, "equal": False, "error": type(error).__name__}
        replies.write(json.dumps(found).encode() + b"\n")


def _limit(memory: int) -> None:
    """No more memory than this, no files, no programs, no core dump."""
    import resource

    wanted = (("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_NPROC", 0), ("RLIMIT_CORE", 0))
    for name, amount in wanted:
        if hasattr(resource, name):
            try:
                resource.setrlimit(getattr(resource, name), (amount, amount))
            except (ValueError, OSError):  # not every system lets every limit be set
                continue


def _limit_time(seconds: int) -> None:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
