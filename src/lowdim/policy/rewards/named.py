"""Rewards by name: the library's, and a function of the user's in a module or a file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, cast

from lowdim.errors import DataError
from lowdim.policy.rewards.answer import Kind, answer_reward
from lowdim.policy.rewards.contract import Reward, checked
from lowdim.policy.rewards.form import overlong_penalty, tag_reward

__all__ = ["NamedReward", "named_reward"]


def named_reward(name: str, *, column: str = "answer") -> Reward:
    """Make a reward of its name on the command line.

    Parameters
    ----------
    name : str
        "latex", "number", "exact" (see `answer_reward`); "tags" (see `tag_reward`); "overlong:MAX:BUFFER" in
        tokens (see `overlong_penalty`); "module:function" or "folder/file.py:function" for a function
        of your own, by TRL's contract.
    column : str, default "answer"
        Column with the gold answers.

    Returns
    -------
    callable
        Checked: a value that is no number, or too few of them, is an error that names the reward. It can be
        pickled; a function of your own is then imported anew.

    Raises
    ------
    DataError
        If there is no such reward, file, module or function (what is there is listed).
    MissingExtra
        If "latex" is asked for and math-verify is not installed.

    Examples
    --------
    >>> named_reward("number")(["?"], ["#### 5"], answer=["5"])
    [1.0]
    >>> named_reward("os.path:joyn")
    Traceback (most recent call last):
    ...
    lowdim.errors.DataError: named_reward: os.path has no function 'joyn'. It has: ...
    """
    if name in ("latex", "number", "exact"):
        return checked(answer_reward(column, kind=cast(Kind, name)))
    if name == "tags":
        return checked(tag_reward())
    source, colon, function = name.rpartition(":")
    if name.split(":")[0] == "overlong":
        sizes = name.split(":")[1:]
        if len(sizes) != 2 or not all(size.isdecimal() for size in sizes):
            raise DataError(f"named_reward: {name!r} must be overlong:MAX:BUFFER, such as overlong:1024:256.")
        return checked(overlong_penalty(int(sizes[0]), buffer=int(sizes[1])))
    if not colon or not source or not function.isidentifier():
        raise DataError(
            f"named_reward: {name!r} is unknown. Use latex, number, exact, tags, overlong:MAX:BUFFER, "
            "module:function or folder/file.py:function."
        )
    return checked(NamedReward(source, function))


class NamedReward:
    """A function of a module or a file, found again by its name wherever it is unpickled.

    Parameters
    ----------
    source : str
        A module, or a file that ends in ``.py``.
    function : str

    Raises
    ------
    DataError
        If it cannot be loaded.

    Examples
    --------
    >>> NamedReward("math", "hypot").__name__
    'hypot'
    """

    def __init__(self, source: str, function: str) -> None:
        self.source = str(Path(source).resolve()) if source.endswith(".py") else source
        self.__name__ = function
        self._function = _load(self.source, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return NamedReward, (self.source, self.__name__)


def _load(source: str, name: str) -> Any:
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except DataError:
        raise
    except Exception as error:  # the file is the user's: whatever it raises is shown
        raise DataError(
            f"named_reward: {source} cannot be imported ({type(error).__name__}: {error}). Check the "
            "name and what the file does when it is imported."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        there = [key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key))]
        raise DataError(
            f"named_reward: {source} has no function {name!r}. It has: {', '.join(there) or 'none'}."
        )
    return found


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"named_reward: there is no file {path}. Check the path.")
    # One module per file, however often it is named: its state is not split in two.
    name = f"lowdim_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"named_reward: {path} is no Python file. Give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
