"""Result: two trained policies, how good they were on the way, and what it cost."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdim.errors import DataError, RunError
from lowdim.runs import atomic_write, plain, read_json, staged

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMAT", "HybridGRPOResult"]

FORMAT = 1

MODELS = ("small", "large")
PARTS = (*MODELS, "evaluations.csv", "metrics.csv", "ledger.csv")
"""What a saved result consists of, beside report.json."""

NEEDED = {"settings", "evaluations", "metrics", "ledger", "sentence"}


@dataclass(frozen=True, eq=False)
class HybridGRPOResult:
    """What `codistill` made and measured.

    Parameters
    ----------
    small, large : Path or None
        Folders of the trained policies in the layout of transformers (or peft), with the tokenizer; `large`
        is None where one model was trained alone.
    table : DataFrame
        One row per evaluation and model: phase ("train" or "continue"), step, model ("small" or "large"),
        accuracy and its standard error, greedy accuracy, share of truncated completions, mean length.
    metrics : DataFrame
        One row per logged step, in the words of the trainer.
    ledger : DataFrame
        One row per phase of training and kind of work: seconds, tokens and floating-point operations.
    report : dict
        The contents of report.json.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> row = {"phase": "train", "step": 0, "model": "small", "accuracy": 0.5}
    >>> report = {"format": FORMAT, "settings": {}, "sentence": "Nothing was trained.", "metrics": []}
    >>> result = HybridGRPOResult.of(None, None, {**report, "evaluations": [row], "ledger": []})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(folder)
    ...     again = HybridGRPOResult.load(folder)
    >>> again.table.equals(result.table), again.small
    (True, None)
    """

    small: Path | None
    large: Path | None
    table: pd.DataFrame
    metrics: pd.DataFrame
    ledger: pd.DataFrame
    report: dict[str, Any]

    @classmethod
    def of(cls, small: Path | None, large: Path | None, report: dict[str, Any]) -> HybridGRPOResult:
        """Return the result of a report: its rows become tables.

        Parameters
        ----------
        small, large : Path or None
            Folders of the policies.
        report : dict
            The contents of report.json.

        Returns
        -------
        HybridGRPOResult
        """
        import pandas as pd

        tables = {name: pd.DataFrame(report[name]) for name in ("evaluations", "metrics", "ledger")}
        return cls(small, large, tables["evaluations"], tables["metrics"], tables["ledger"], report)

    def policy(self, model: str = "small", **options: Any) -> Any:
        """Load one of the two policies.

        Parameters
        ----------
        model : {"small", "large"}
        **options
            Passed on to ``from_pretrained``.

        Returns
        -------
        PreTrainedModel or PeftModel

        Raises
        ------
        DataError
            If there is no such policy in this result.
        """
        folder = {"small": self.small, "large": self.large}.get(model)
        if folder is None:
            there = [name for name in MODELS if getattr(self, name) is not None]
            raise DataError(
                f"HybridGRPOResult.policy: there is no {model!r}. Use one of: {', '.join(there) or 'none'}."
            )
        return load_policy(folder, **options)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write both policies, the tables as CSV, and report.json.

        Parameters
        ----------
        directory : path
            Made if it is missing. Read it back with `load`.

        Raises
        ------
        RunError
            If it cannot be written; a folder with a report.json is complete.
        """
        folder = Path(directory)
        with staged(folder, names=PARTS, report=plain(self.report)) as beside:
            for name in MODELS:
                source = getattr(self, name)
                if source is not None:
                    shutil.copytree(source, beside / name)
            tables = {"evaluations": self.table, "metrics": self.metrics, "ledger": self.ledger}
            for name, table in tables.items():
                atomic_write(beside / f"{name}.csv", table.to_csv(index=False))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> HybridGRPOResult:
        """Read a folder that `save` or ``lowdim policy train`` has written; the models stay on the disk.

        Parameters
        ----------
        directory : path

        Returns
        -------
        HybridGRPOResult

        Raises
        ------
        RunError
            If a file is missing, damaged, or of an unknown format.
        """
        folder = Path(directory)
        if not (folder / "report.json").is_file():
            raise RunError(
                f"{folder} holds no report.json. Give a folder written by `lowdim policy train` or save()."
            )
        report = read_json(folder / "report.json")
        if not isinstance(report, dict) or report.get("format") != FORMAT or not report.keys() >= NEEDED:
            raise RunError(
                f"{folder / 'report.json'} is no report of `lowdim policy train` in format {FORMAT}. Use the "
                "lowdim that wrote it, or run again."
            )
        small, large = (folder / name if (folder / name).is_dir() else None for name in MODELS)
        return cls.of(small, large, report)

    def summary(self) -> str:
        """Return the finding in a few sentences.

        Returns
        -------
        str
        """
        return str(self.report["sentence"])


def load_policy(folder: str | os.PathLike[str], **options: Any) -> Any:
    """Return the model of a folder: of transformers, or an adapter of peft on its base.

    Parameters
    ----------
    folder : path or Hub id
    **options
        Passed on to ``from_pretrained``.

    Returns
    -------
    PreTrainedModel or PeftModel
    """
    if (Path(folder) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(os.fspath(folder), **options)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(os.fspath(folder), **options)
