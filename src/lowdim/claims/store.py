"""Where claims find their data and keep what they share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lowdim
from lowdim.errors import DataError
from lowdim.runs import atomic_json

__all__ = ["Store", "data_folder"]


def data_folder() -> Path | None:
    """Return the folder with the data sets of the claims.

    The environment variable ``LOWDIM_DATA`` names it. Without it, a source
    checkout looks for ``shared/data`` beside itself; an installed package has
    no default.

    Returns
    -------
    Path or None
        The folder, or None when there is none.

    Raises
    ------
    DataError
        If ``LOWDIM_DATA`` names something that is not a folder.

    Examples
    --------
    >>> folder = data_folder()
    >>> folder is None or folder.is_dir()
    True
    """
    named = os.environ.get("LOWDIM_DATA")
    if named:
        folder = Path(named)
        if not folder.is_dir():
            raise DataError(
                f"LOWDIM_DATA={named} is not a folder. Name the folder that has stsb/, wikitext2/."
            )
        return folder
    checkout = Path(lowdim.__file__).resolve().parents[2]
    if not (checkout / "pyproject.toml").is_file():
        return None
    beside = (checkout.parent / "shared" / "data", checkout / "shared" / "data")
    return next((folder for folder in beside if folder.is_dir()), None)


class Store:
    """Results that several claims share, kept in memory and, if wanted, on disk.

    Parameters
    ----------
    folder : Path, optional
        Where to keep them as JSON files; in memory only without it.
    resume : bool, default False
        Whether files that an earlier run left in `folder` are used.

    Examples
    --------
    >>> store = Store()
    >>> store.get("answer", lambda: 42), store.get("answer", lambda: 0)
    (42, 42)
    """

    def __init__(self, folder: Path | None = None, *, resume: bool = False) -> None:
        self._folder = folder
        self._resume = resume
        self._memory: dict[str, Any] = {}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the result under a key, computing and keeping it the first time.

        Parameters
        ----------
        key : str
            Letters, digits, dots and hyphens.
        compute : callable
            Returns something JSON-ready.

        Returns
        -------
        object
            The result.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]+", key):
            raise DataError(f"Store: the key {key!r} must consist of letters, digits, dots and hyphens.")
        if key in self._memory:
            return self._memory[key]
        path = None if self._folder is None else self._folder / f"{key}.json"
        if path is not None and self._resume and path.is_file():
            value = json.loads(path.read_text(encoding="utf-8"))
        else:
            # The round trip makes the first asker see what a resumed run would see.
            value = json.loads(json.dumps(compute()))
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_json(path, value)
        self._memory[key] = value
        return value
