"""The exception classes of the house.

Every message says where it happened, what was given, what was expected and
what to do: ``"Blast: out_features=100 cannot be cut into 16 blocks. Use a
divisor of 100 (1, 2, 4, 5, 10, ...) or pad=True."``
"""

__all__ = [
    "BudgetError",
    "DataError",
    "Diverged",
    "LowdimError",
    "LowdimWarning",
    "MissingExtra",
    "RankError",
    "RunError",
    "ShapeError",
]


class LowdimError(Exception):
    """Base class of every error raised on purpose by lowdim."""


class ShapeError(LowdimError, ValueError):
    """Shapes, block counts or dimensions do not fit together."""


class RankError(LowdimError, ValueError):
    """A rank (or number of dimensions) is impossible for the given sizes."""


class BudgetError(LowdimError, ValueError):
    """A budget (`keep`, bytes, parameters) is out of range or cannot be met."""


class DataError(LowdimError, ValueError):
    """The data, the file or the option given cannot be used."""


class Diverged(LowdimError, RuntimeError):
    """An iteration left the finite numbers.

    Parameters
    ----------
    message : str
        Where, and what to do.
    step : int, optional
        The step at which it happened.
    last : float, optional
        The last finite value of the objective.
    """

    def __init__(self, message: str, *, step: int | None = None, last: float | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.last = last


class MissingExtra(LowdimError, ImportError):
    """An optional package is needed and not installed.

    Parameters
    ----------
    package : str
        The package that is missing.
    extra : str
        The extra of lowdim which brings it.
    purpose : str
        What it is needed for, as the end of a sentence.

    Examples
    --------
    >>> print(MissingExtra("peft", extra="transformers", purpose="train adapters"))
    lowdim needs the package 'peft' to train adapters. Install it with: pip install 'lowdim[transformers]'
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"lowdim needs the package '{package}' to {purpose}. "
            f"Install it with: pip install 'lowdim[{extra}]'"
        )
        self.package = package
        self.extra = extra


class RunError(LowdimError):
    """A run directory is locked, incomplete, damaged or belongs to another run."""


class LowdimWarning(UserWarning):
    """Something works, but less well than it could; the text says what to do."""
