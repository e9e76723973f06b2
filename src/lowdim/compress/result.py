"""What `compress` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lowdim.algebra import History
from lowdim.compress.card import ARCHITECTURE
from lowdim.compress.plan import LayerPlan, LeftAlone, Plan
from lowdim.compress.record import final_quality, final_speed, in_int8
from lowdim.compress.tables import TablePlan
from lowdim.errors import RunError
from lowdim.runs import read_json

if TYPE_CHECKING:
    import pandas

__all__ = ["CompressResult"]

FORMAT = 1
"""Version of report.json that is read here."""

FIGURES = {
    "cosine": "cosine to the original embedding",
    "cosine_q05": "its 5 % quantile",
    "top1": "same nearest neighbor",
    "top10": "shared ten nearest neighbors",
    "perplexity_before": "perplexity of the original",
    "perplexity_after": "perplexity",
    "kl": "Kullback-Leibler divergence (nats)",
    "agreement": "agreement with the original class",
    "relative_error": "relative output error",
}
"""The figures of `evaluate` in words."""


@dataclass(frozen=True)
class CompressResult:
    """A compressed model and everything that was measured about it.

    Parameters
    ----------
    model : Module
        With `StructuredLinear` layers (and smaller embedding tables, if asked for), in evaluation mode.
    plan : Plan
        Layers, ranks, and what was left alone.
    report : dict
        The contents of report.json.
    history : History or None
        Of the recovery, if there was one.
    tokenizer : object
        Saved beside the model; None if there is none.

    Examples
    --------
    >>> import torch
    >>> from lowdim.compress import compress
    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> result = compress(net, keep=0.5, method="lowrank", calibration=[torch.randn(256, 64)])
    >>> result.report["parameters"]["compressible_before"]
    8192
    >>> list(result.layers["rank"])
    [16, 16]
    """

    model: nn.Module
    plan: Plan
    report: dict[str, Any]
    history: History | None = None
    tokenizer: Any = None

    @property
    def layers(self) -> pandas.DataFrame:
        """One row per compressed layer: shape, structure, rank, fraction kept, errors, time."""
        import pandas

        hidden = ("residual", "reason", "notes")
        rows = self.report["layers"]
        return pandas.DataFrame([{k: v for k, v in row.items() if k not in hidden} for row in rows])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write model, configuration, tokenizer, report.json and model card as one folder.

        Parameters
        ----------
        directory : path
            Created if missing. Read it back with `load`, or a transformers model with
            ``AutoModel.from_pretrained`` after ``import lowdim``; the model card says how.

        Raises
        ------
        RunError
            If the disk is full; nothing half-written stays.
        """
        from lowdim.compress.write import write_checkpoint

        folder = getattr(getattr(self.model, "config", None), "_name_or_path", None)
        source = folder if folder and Path(folder).is_dir() else None
        write_checkpoint(self.model, directory, tokenizer=self.tokenizer, report=self.report, source=source)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, model: nn.Module | None = None) -> CompressResult:
        """Read a folder that `save` or ``lowdim compress`` has written.

        Parameters
        ----------
        directory : path
            The folder.
        model : Module, optional
            For a model that is no transformers model: a fresh one of the original architecture, which is
            turned into the compressed one in place.

        Returns
        -------
        CompressResult

        Raises
        ------
        RunError
            If a file is missing, damaged, or of an unknown format, or the model is needed and not given.
        """
        from lowdim.compress.loading import load
        from lowdim.compress.write import load_weights

        path = Path(directory)
        report, plan, history = _read_report(path / "report.json")
        tokenizer = None
        if (path / "config.json").is_file():
            source = load(path, device="cpu")
            compressed, tokenizer = source.model, source.processor
        elif model is None:
            name = report.get("architecture", "module")
            built = "..."
            if (path / ARCHITECTURE).is_dir():
                built = f"{name}.from_config({name}.load_config(directory, subfolder={ARCHITECTURE!r}))"
            raise RunError(
                f"{path} holds the weights of a {name} that is no "
                f"transformers model. Pass a fresh one: CompressResult.load(directory, model={built})."
            )
        else:
            compressed = load_weights(model, path).eval()
        return cls(compressed, plan, report, history, tokenizer)

    def summary(self) -> str:
        """Return size, quality and speed in a few lines of text.

        Returns
        -------
        str
        """
        return "\n".join(
            f"{name}: {before} -> {after}{f' (float factors: {rest[0]})' if any(rest) else ''}"
            for name, before, after, *rest in summary_rows(self.report)
        )


def summary_columns(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the titles over the cells of `summary_rows`.

    Parameters
    ----------
    report : mapping
        The contents of report.json.

    Returns
    -------
    tuple of str
    """
    return (
        ("", "Original", "Compressed, int8", "Float factors")
        if in_int8(report)
        else ("", "Original", "Compressed")
    )


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows (what, before, after) of a report, formatted.

    "After" is the model that was written. Where that is int8, the float factors are a fourth cell.

    Parameters
    ----------
    report : mapping
        The contents of report.json.

    Returns
    -------
    list of tuple of str
    """
    p, b = report["parameters"], report["bytes"]
    quantized = in_int8(report)

    def further(text: str) -> tuple[str, ...]:
        return (text,) if quantized else ()

    rows: list[tuple[str, ...]] = [
        ("parameters", f"{p['before']:,}", f"{p['after']:,} ({p['after'] / p['before']:.0%})", *further("")),
        (
            "  of the compressed layers",
            f"{p['compressible_before']:,}",
            f"{p['compressible_after']:,} ({p['compressible_after'] / p['compressible_before']:.0%})",
            *further(""),
        ),
        *(
            (
                f"  of the table {row['name']}, {row['how']}",
                f"{row['bytes']['before'] / 1e6:.1f} MB",
                f"{row['bytes']['after'] / 1e6:.1f} MB (error {row['relative_error']:.1%})",
                *further(""),
            )
            for row in report.get("embeddings") or []
        ),
        (
            "weights on disk",
            f"{b['before'] / 1e6:.1f} MB",
            f"{b['after'] / 1e6:.1f} MB",
            *further(f"{b['float'] / 1e6:.1f} MB" if "float" in b else ""),
        ),
    ]
    quality = final_quality(report)
    for key, label in FIGURES.items():
        if (value := quality.get(key)) is not None:
            was = "" if key == "perplexity_before" else _earlier(report["quality"], key)
            # Recovery trained the float factors, so "before recovery" is said of them.
            unrounded = report["quality"].get(key)
            beside = further("" if unrounded is None else f"{unrounded:.4g}{was}")
            rows.append((label, "", f"{value:.4g}{'' if quantized else was}", *beside))
    for size, timing in final_speed(report).items():
        ratio = f" ({timing['ratio']:.2f} times as fast)"
        rows.append(
            (
                f"forward pass, batch {size}",
                f"{timing['before_ms']:.1f} ms",
                f"{timing['after_ms']:.1f} ms{ratio}",
                *further(f"{report['speed'][size]['after_ms']:.1f} ms"),
            )
        )
    return rows


def _earlier(quality: Mapping[str, Any], key: str) -> str:
    """Return in parentheses what a figure was before recovery and before the tables became smaller."""
    stages = {"before_recovery": "before recovery", "before_embeddings": "with the original tables"}
    told = [
        f"{quality[stage][key]:.4g} {words}"
        for stage, words in stages.items()
        if (quality.get(stage) or {}).get(key) is not None
    ]
    return f" ({', '.join(told)})" if told else ""


def _read_report(path: Path) -> tuple[dict[str, Any], Plan, History | None]:
    """Read report.json and what it tells of plan and recovery, or refuse it by name."""
    report = read_json(path)
    known = report.get("format") if isinstance(report, dict) else None
    if known != FORMAT:
        raise RunError(
            f"{path} has format {known!r}; this lowdim reads {FORMAT}. Use the lowdim that wrote it, or "
            "compress again with --restart."
        )
    try:
        return report, _plan(report), _history(report)
    except (KeyError, TypeError, IndexError) as error:
        raise RunError(
            f"{path} was changed after it was written: an entry is missing or of another kind "
            f"({type(error).__name__}: {error}). Copy it again, or compress again with --restart."
        ) from error


def _plan(report: Mapping[str, Any]) -> Plan:
    layers = tuple(
        LayerPlan(
            name=row["name"],
            places=tuple(row.get("places", [row["name"]])),
            shape=(row["shape"][0], row["shape"][1]),
            structure=row["structure"],
            rank=row["rank"],
            blocks=None if row["blocks"] is None else (row["blocks"][0], row["blocks"][1]),
            parameters=row["parameters_after"],
        )
        for row in report["layers"]
    )
    left = tuple(
        LeftAlone(row["name"], tuple(row["shape"]), row["parameters"], row["reason"])
        for row in report["left_alone"]
    )
    tables = tuple(
        TablePlan(
            name=row["name"],
            shape=(row["shape"][0], row["shape"][1]),
            how=row["how"],
            rank=row["rank"],
            parameters=row["parameters_after"],
        )
        for row in report.get("embeddings") or []
    )
    return Plan(layers, left, report["method"], report["keep"], report["parameters"]["before"], tables)


def _history(report: Mapping[str, Any]) -> History | None:
    row = report.get("recovery")
    if row is None:
        return None
    return History(
        objective=tuple(row["objective"]),
        residual=tuple(row["residual"]),
        seconds=row["seconds"],
        reason=row["reason"],
    )
