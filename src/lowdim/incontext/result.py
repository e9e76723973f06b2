"""Result: what a study found, as a value and as a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lowdim.errors import DataError, RunError
from lowdim.incontext.attention import LinearAttention
from lowdim.incontext.transformer import PromptTransformer
from lowdim.runs import atomic_tensors, atomic_write, read_json, read_tensors, staged

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMAT", "MODELS", "StudyResult"]

FORMAT = 1

PARTS = ("risks.csv", "adapters.csv", "weights.safetensors")
"""What a saved result consists of, beside report.json."""

MODELS = ("optimal", "linear", "gpt2")

RISKS = ("seed", "predictor", "angle_deg", "n", "risk", "se", "relative")
ADAPTERS = ("seed", "method", "angle_deg", "n", "rank", "risk", "relative")


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What `study` found.

    Parameters
    ----------
    risks : DataFrame
        One row per seed, predictor, angle and context length; see `evaluate`.
    adapters : DataFrame
        One row per seed, method ("closed form" or "trained"), and rank of the update, with the risk on tasks
        turned by the angle; empty if no ranks were asked for.
    weights : dict of str to Tensor
        ``"<seed>/<parameter>"``: weights of the models, and ``"<seed>/bases"``: the subspaces they were
        trained on.
    report : dict
        The contents of report.json.

    Examples
    --------
    >>> import tempfile
    >>> from lowdim.incontext import study
    >>> result = study("optimal", d=4, r=1, angles_deg=[0, 90], context_lengths=[20], prompts=100)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     again = StudyResult.load(folder)
    >>> bool((again.weights["0/W"] == result.weights["0/W"]).all()), len(again.risks) == len(result.risks)
    (True, True)
    """

    risks: pd.DataFrame
    adapters: pd.DataFrame
    weights: dict[str, Tensor]
    report: dict[str, Any]

    def model(self, *, seed: int | None = None) -> LinearAttention | PromptTransformer:
        """Return the model of a seed, the first by default.

        Parameters
        ----------
        seed : int, optional

        Returns
        -------
        LinearAttention or PromptTransformer

        Raises
        ------
        DataError
            If the study has no such seed.
        """
        settings = self.report["settings"]
        seeds = [settings["seed"] + i for i in range(settings["seeds"])]
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            raise DataError(f"StudyResult.model: there is no seed {seed}. Use one of {seeds}.")
        own = {
            name.partition("/")[2]: value
            for name, value in self.weights.items()
            if name.startswith(f"{seed}/") and name != f"{seed}/bases"
        }
        model: LinearAttention | PromptTransformer
        if settings["model"] == "gpt2":
            model = PromptTransformer(settings["d"], **self.report["sizes"])
        else:
            model = LinearAttention(settings["d"], merged="W" in own)
        model.to(next(iter(own.values())).dtype).load_state_dict(own)
        return model

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write risks.csv, adapters.csv (if there are any), weights.safetensors and report.json.

        Parameters
        ----------
        directory : path
            Made if it is missing. Read it back with `load`.

        Raises
        ------
        RunError
            If it cannot be written; a folder with a report.json is complete.
        """
        with staged(directory, names=PARTS, report=self.report) as staging:
            atomic_write(staging / "risks.csv", self.risks.to_csv(index=False))
            if len(self.adapters):
                atomic_write(staging / "adapters.csv", self.adapters.to_csv(index=False))
            atomic_tensors(staging / "weights.safetensors", self.weights)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> StudyResult:
        """Read a folder that `save` or ``lowdim incontext run`` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        StudyResult

        Raises
        ------
        RunError
            If a file is missing, damaged, or of an unknown format.
        """
        folder = Path(directory)
        if not (folder / "report.json").is_file():
            raise RunError(
                f"{folder} holds no report.json. Give a folder written by `lowdim incontext run` or save()."
            )
        report = read_json(folder / "report.json")
        whole = isinstance(report, dict) and {"risks", "adapters", "settings", "sentence"} <= report.keys()
        if not whole or report.get("format") != FORMAT:
            raise RunError(
                f"{folder / 'report.json'} is no report of `lowdim incontext run` in format {FORMAT}. Use "
                "the lowdim that wrote it, or run again."
            )
        weights, _ = read_tensors(folder / "weights.safetensors", remedy="Run again.")
        return cls(table(report["risks"], RISKS), table(report["adapters"], ADAPTERS), weights, report)

    def summary(self) -> str:
        """Return the finding in a sentence or two.

        Returns
        -------
        str
        """
        return str(self.report["sentence"])


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """Return rows as a table with these columns; None in numbers is NaN."""
    import pandas as pd

    found = pd.DataFrame(rows, columns=list(columns))
    numbers = {name: float for name in ("risk", "se", "relative", "angle_deg") if name in columns}
    return found.astype(numbers)
