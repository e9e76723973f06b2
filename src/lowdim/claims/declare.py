"""Claim: a statement, a threshold, and the function that measures it."""

from __future__ import annotations

import fnmatch
import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowdim.claims.store import Store, data_folder
from lowdim.errors import DataError, LowdimError

__all__ = ["Claim", "Measurement", "Trial", "Unavailable", "claim", "find", "registered"]

#: The files of this folder that declare claims, in the order of the table.
SYSTEMS = (
    "answers",
    "blast",
    "compress",
    "dcdp",
    "digits",
    "dln",
    "dynamics",
    "economies",
    "flatness",
    "incontext",
    "phase",
    "plan",
    "policy",
    "rates",
    "regress",
    "resample",
    "staged",
    "track",
)

_REGISTRY: dict[str, Claim] = {}
_IDENTIFIER = re.compile(r"[a-z0-9]+\.[a-z0-9]+(-[a-z0-9]+)*")


class Unavailable(LowdimError):
    """A claim cannot be measured here; the text is the reason shown in the table.

    Examples
    --------
    >>> print(Unavailable("needs a GPU"))
    needs a GPU
    """


@dataclass(frozen=True)
class Measurement:
    """One measured number and what else was seen on the way.

    Parameters
    ----------
    value : float
        The number that the threshold is about.
    details : dict
        JSON-ready further figures, kept in the result file of the claim.
    judged : bool, default True
        Whether the threshold applies; False for an experiment that ``--quick``
        cut down so far that its figure says nothing.

    Examples
    --------
    >>> Measurement(0.9, {"top10": 0.7}).details
    {'top10': 0.7}
    """

    value: float
    details: dict[str, Any] = field(default_factory=dict)
    judged: bool = True


@dataclass(frozen=True)
class Trial:
    """What a measuring function is given: one seed of one run.

    Parameters
    ----------
    seed : int
        Seed of everything random in this measurement.
    quick : bool
        Whether a smaller experiment is wanted.
    store : Store
        Results shared between claims.

    Examples
    --------
    >>> Trial(seed=3, quick=False, store=Store()).share("seed-times-two", lambda: 6)
    6
    """

    seed: int
    quick: bool
    store: Store

    def data(self, name: str) -> Path:
        """Return the path of a data file below the folder of ``LOWDIM_DATA``.

        Parameters
        ----------
        name : str
            Path inside the data folder, such as ``"stsb/dev.csv"``.

        Returns
        -------
        Path
            The existing file.

        Raises
        ------
        Unavailable
            If there is no data folder or the file is not in it.
        """
        folder = data_folder()
        if folder is None:
            raise Unavailable(f"needs {name}: set LOWDIM_DATA to the folder that has it")
        path = folder / name
        if not path.is_file():
            raise Unavailable(f"needs {name}, which is not in the data folder (LOWDIM_DATA)")
        return path

    def share(self, name: str, compute: Callable[[], Any], *, seeded: bool = True) -> Any:
        """Return a JSON-ready result that several claims use, computing it once per run.

        Parameters
        ----------
        name : str
            What it is, unique among the claims.
        compute : callable
            Called without arguments when no claim of this run asked before.
        seeded : bool, default True
            Whether the result depends on the seed.

        Returns
        -------
        object
            What `compute` returned, after a round trip through JSON.
        """
        key = f"{name}-quick" if self.quick else name
        return self.store.get(f"{key}-seed{self.seed}" if seeded else key, compute)


@dataclass(frozen=True)
class Claim:
    """A statement about lowdim that can be measured.

    Parameters
    ----------
    id : str
        ``"<system>.<name>"``, lower case with hyphens.
    statement : str
        What is claimed, one sentence.
    source : str
        Where the claim comes from.
    setting : str
        Sizes, data, seeds: what one needs to know to repeat it.
    measure : callable
        ``measure(trial) -> float | Measurement``, called once per seed.
    paper : str, default "none"
        The figure of the source.
    at_least, at_most : float, optional
        The threshold on the mean over the seeds; without one the claim is
        reported and not gated.
    seeds : tuple of int, default (0,)
        Seeds of the full run; ``--quick`` takes the first.
    unit : str, default ""
        Unit of the value.

    Examples
    --------
    >>> half = Claim("demo.half", "A half is small.", "none", "none", lambda trial: 0.5, at_most=0.6)
    >>> half.system, half.threshold, half.met_by(0.7)
    ('demo', '<= 0.6', False)
    """

    id: str
    statement: str
    source: str
    setting: str
    measure: Callable[[Trial], float | Measurement]
    paper: str = "none"
    at_least: float | None = None
    at_most: float | None = None
    seeds: tuple[int, ...] = (0,)
    unit: str = ""

    def __post_init__(self) -> None:
        if not _IDENTIFIER.fullmatch(self.id):
            raise DataError(
                f"Claim: id {self.id!r} must be '<system>.<name>' in lower-case letters, digits and hyphens."
            )
        if self.at_least is not None and self.at_most is not None:
            raise DataError(
                f"Claim {self.id}: give one of at_least and at_most; declare two claims for both."
            )
        if not self.seeds:
            raise DataError(f"Claim {self.id}: needs at least one seed.")

    @property
    def system(self) -> str:
        """The system (file) that the claim belongs to."""
        return self.id.partition(".")[0]

    @property
    def gated(self) -> bool:
        """Whether the claim has a threshold."""
        return self.at_least is not None or self.at_most is not None

    @property
    def threshold(self) -> str:
        """The threshold as text, empty for a reported claim."""
        if self.at_least is not None:
            return f">= {self.at_least:g}{self.unit}"
        if self.at_most is not None:
            return f"<= {self.at_most:g}{self.unit}"
        return ""

    def met_by(self, value: float) -> bool:
        """Say whether a mean value meets the threshold (NaN never does).

        Parameters
        ----------
        value : float
            Mean over the seeds.

        Returns
        -------
        bool
            True for a reported claim as long as the value is a number.
        """
        if self.at_least is not None:
            return value >= self.at_least
        if self.at_most is not None:
            return value <= self.at_most
        return value == value


def claim(
    id: str,
    *,
    statement: str,
    source: str,
    setting: str,
    paper: str = "none",
    at_least: float | None = None,
    at_most: float | None = None,
    seeds: tuple[int, ...] = (0,),
    unit: str = "",
) -> Callable[[Callable[[Trial], float | Measurement]], Callable[[Trial], float | Measurement]]:
    """Declare the decorated function as the measurement of a claim.

    Parameters
    ----------
    id, statement, source, setting, paper, at_least, at_most, seeds, unit
        See :class:`Claim`.

    Returns
    -------
    callable
        The decorator; it returns the function unchanged.

    Raises
    ------
    DataError
        If the id is taken or malformed.

    Examples
    --------
    >>> _ = registered()
    >>> @claim("blast.als-recovers", statement="Again.", source="none", setting="none")
    ... def again(trial):
    ...     return 0.0
    Traceback (most recent call last):
    ...
    lowdim.errors.DataError: claim: the id 'blast.als-recovers' is declared twice.
    """

    def declare(measure: Callable[[Trial], float | Measurement]) -> Callable[[Trial], float | Measurement]:
        declared = Claim(id, statement, source, setting, measure, paper, at_least, at_most, seeds, unit)
        if id in _REGISTRY:
            raise DataError(f"claim: the id {id!r} is declared twice.")
        _REGISTRY[id] = declared
        return measure

    return declare


def registered() -> list[Claim]:
    """Return every declared claim, in the order of the table.

    Returns
    -------
    list of Claim
        All claims of all systems.

    Examples
    --------
    >>> {claim.system for claim in registered()} >= {"blast", "compress"}
    True
    """
    for system in SYSTEMS:
        importlib.import_module(f"lowdim.claims.{system}")
    order = {system: position for position, system in enumerate(SYSTEMS)}
    return sorted(_REGISTRY.values(), key=lambda declared: order.get(declared.system, len(order)))


def find(
    ids: Iterable[str] = (), *, system: str | None = None, among: Iterable[Claim] | None = None
) -> list[Claim]:
    """Select claims by id and system.

    Parameters
    ----------
    ids : iterable of str
        Ids, or patterns such as ``compress.sts-*``; none means all.
    system : str, optional
        Keep only the claims of this system.
    among : iterable of Claim, optional
        Where to look; all registered claims by default.

    Returns
    -------
    list of Claim
        In the order of the table.

    Raises
    ------
    DataError
        If an id or the system is unknown, or nothing is left.

    Examples
    --------
    >>> [declared.id for declared in find(["blast.special-*"])]
    ['blast.special-cases']
    """
    everything = list(registered() if among is None else among)
    systems = sorted({declared.system for declared in everything})
    if system is not None and system not in systems:
        raise DataError(f"claims: no system {system!r}. Use one of {', '.join(systems)}.")
    patterns = set(ids)
    names = [declared.id for declared in everything]
    meant = {pattern: fnmatch.filter(names, pattern) for pattern in patterns}
    wanted = {found for matches in meant.values() for found in matches}
    unknown = sorted(pattern for pattern, matches in meant.items() if not matches)
    if unknown:
        raise DataError(f"claims: no claim named {', '.join(unknown)}. `lowdim claims list` shows the names.")
    chosen = [
        declared
        for declared in everything
        if (not patterns or declared.id in wanted) and (system is None or declared.system == system)
    ]
    if not chosen:
        raise DataError(f"claims: none of the named claims belongs to the system {system!r}.")
    return chosen
