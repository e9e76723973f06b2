"""What a Monitor is given, checked before anything is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from lowdim.dynamics.tracker import SharpnessTracker
from lowdim.errors import DataError

__all__ = ["check_counts", "check_options", "names"]


def names(option: str, given: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Check a choice of names, and put it in order.

    Parameters
    ----------
    option : str
        The option they are given as.
    given : sequence of str, or str
    known : tuple of str
        All there are.

    Returns
    -------
    tuple of str

    Raises
    ------
    DataError
        If one is unknown, or there is none.
    """
    given = (given,) if isinstance(given, str) else tuple(given)
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        got = f"{unknown[0]!r} is unknown" if unknown else "there is none"
        raise DataError(f"Monitor: {option}: {got}. Use some of {', '.join(known)}.")
    return tuple(name for name in known if name in given)


def check_counts(**counts: int) -> None:
    """Refuse what is no positive integer.

    Parameters
    ----------
    **counts : int
        By the names of the options.

    Raises
    ------
    DataError
        If one is not.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"Monitor: {name}={value!r} is no positive integer.")


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse options that a SharpnessTracker does not have, or that the Monitor gives itself.

    Parameters
    ----------
    given : mapping

    Raises
    ------
    DataError
        If there is one.
    """
    known = [name for name in signature(SharpnessTracker).parameters if name not in _OWN]
    for name in given:
        if name not in known:
            raise DataError(
                f"Monitor: curvature: {name!r} is no option here. Use some of {', '.join(known)}."
            )


_OWN = ("model", "loss_fn", "optimizer", "batches")
