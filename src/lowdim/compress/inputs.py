"""Inputs to calibrate with, to evaluate on and to time: from text or images, or as the caller gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from lowdim.compress.images import Images, image_batches, read_images
from lowdim.compress.loading import Source
from lowdim.compress.text import Text, batches, builtin_text, read_text, split_column
from lowdim.errors import DataError
from lowdim.runs import digest, file_digest

__all__ = ["Inputs", "prepare", "source_digest"]

MAX_LENGTH = 128
"""Longest calibration text, in tokens."""

HELDOUT_LENGTH = 64
"""Longest held-out text of an embedding model; language models get `MAX_LENGTH`."""

RECOVERY_BATCH = 16
"""Texts per step of recovery: more steps teach more than longer ones at the same cost."""

TIMED_LENGTH = 32
"""Tokens per text in the measurement of speed."""

HELD_OUT = 0.1
"""Fraction of the calibration images that is held out where no others are given."""


@dataclass(frozen=True)
class Inputs:
    """Everything that is fed to the models.

    Parameters
    ----------
    calibration : list
        Batches; empty if there are none (weight-only methods).
    evaluation : list
        Held-out batches.
    timed : object
        One batch for the measurement of speed, or None.
    about : dict
        "calibration" of report.json.
    evaluated_on : str
        A sentence for the report.
    recovery : list
        Batches of the calibration text, cut for recovery; empty where the caller gave batches (then the
        calibration batches serve).
    notes : list of str
        For the report.
    """

    calibration: list[Any]
    evaluation: list[Any]
    timed: Any
    about: dict[str, Any]
    evaluated_on: str
    recovery: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(
    source: Source,
    task: str,
    *,
    calibration: Any,
    calibration_tokens: int,
    evaluation: Any,
    needed: bool,
    seed: int,
) -> Inputs:
    """Turn the arguments of `compress` into batches.

    Parameters
    ----------
    source : Source
        Model and tokenizer.
    task : str
        From `task_of`.
    calibration, evaluation : None, path, text, list of str, or iterable of batches
        None means the built-in text; a folder holds images.
    calibration_tokens : int
        How many tokens to take.
    evaluation : as `calibration`
        Held-out inputs.
    needed : bool
        Whether the method cannot do without calibration.
    seed : int
        Which texts are taken.

    Returns
    -------
    Inputs

    Raises
    ------
    DataError
        If there is no way to make inputs for this model.
    """
    if calibration_tokens < 1:
        raise DataError(f"compress: calibration_tokens={calibration_tokens} must be a positive number.")
    if _is_folder(calibration) or _is_folder(evaluation):
        return _from_images(source, calibration, evaluation, calibration_tokens, seed)
    wants_text = _is_text(calibration) and _is_text(evaluation)
    if wants_text and _deaf(source, task) is not None:
        return _without_text(source, task, calibration, evaluation, needed)
    longest = _longest(source)
    length = min(HELDOUT_LENGTH if task == "embedding" else MAX_LENGTH, longest)
    notes: list[str] = []
    recovery: list[Any] = []
    if _is_text(calibration):
        tokenizer = _tokenizer(source, task)
        text = _read(calibration, "calibration")
        rows = batches(
            text,
            tokenizer,
            tokens=calibration_tokens,
            max_length=min(MAX_LENGTH, longest),
            seed=seed,
        )
        recovery = batches(
            text,
            tokenizer,
            tokens=calibration_tokens,
            max_length=length,
            batch_size=RECOVERY_BATCH,
            seed=seed,
        )
        about = {
            "text": text.note,
            "tokens": _count(rows),
            "paragraphs": sum(len(row["input_ids"]) for row in rows),
            "max_length": min(MAX_LENGTH, longest),
        }
    else:
        rows = _batches(calibration, "calibration")
        about = {"text": f"{len(rows)} batches given in Python", "batches": len(rows)}
    if evaluation is None and not _is_text(calibration):
        notes.append(
            "The quality was measured on the calibration inputs, for no others were given: evaluation=..."
        )
        return Inputs(rows, rows, rows[0], about, "the calibration inputs", notes=notes)
    if not _is_text(evaluation):
        heldout = _batches(evaluation, "evaluation")
        told = f"{len(heldout)} batches given in Python"
        return Inputs(rows, heldout, heldout[0], about, told, recovery, notes)
    tokenizer = _tokenizer(source, task)
    text = _read(evaluation, "heldout")
    heldout = batches(text, tokenizer, tokens=None, max_length=length, seed=seed)
    timed = batches(text, tokenizer, tokens=None, max_length=min(TIMED_LENGTH, longest), seed=seed)[-1]
    return Inputs(rows, heldout, timed, about, text.note, recovery, notes)


def source_digest(given: Any) -> str | None:
    """Return the SHA-256 of a calibration or evaluation argument; None for the built-in text.

    Parameters
    ----------
    given : None, path, text, list of str or list of batches
        A file is known by its bytes, its ending and the column that is read; a folder by its images.

    Returns
    -------
    str or None
    """
    if given is None:
        return None
    if _is_folder(given):
        images = read_images(given).files
        return digest(
            *[part for file in images for part in (str(file.relative_to(given)), file_digest(file))]
        )
    if isinstance(given, (str, Path)):
        path, column = split_column(given)
        if not path.is_file():
            return digest(str(given))
        # The ending chooses how the file is read, and the column which text in it.
        return digest(file_digest(path), path.suffix.lower(), column)
    if isinstance(given, Text):
        return digest(given.paragraphs)
    if _is_text(given):
        return digest(list(given))
    return digest(*[part for batch in given for part in _parts(batch)])


def _parts(batch: Any) -> Iterable[Any]:
    if isinstance(batch, Mapping):
        for key in sorted(batch):
            yield key
            yield from _parts(batch[key])
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _parts(value)
    elif isinstance(batch, Tensor) or batch is None or isinstance(batch, str | int | float | bool):
        yield batch
    else:
        yield repr(batch)


def _is_text(given: Any) -> bool:
    if given is None or isinstance(given, (str, Path, Text)):
        return True
    return isinstance(given, Sequence) and bool(given) and all(isinstance(item, str) for item in given)


def _is_folder(given: Any) -> bool:
    return isinstance(given, (str, Path)) and Path(given).is_dir()


def _from_images(source: Source, calibration: Any, evaluation: Any, tokens: int, seed: int) -> Inputs:
    """Turn folders of images into batches; without other images a tenth of them is held out."""
    kind, folder = type(source.model).__name__, calibration if _is_folder(calibration) else evaluation
    reads = getattr(source.model, "main_input_name", "input_ids")
    if reads != "pixel_values":
        raise DataError(
            f"compress: {folder} is a folder, which is read as images, but {kind} reads {reads}. Give a text "
            "file, or batches of its inputs from Python."
        )
    if source.processor is None:
        raise DataError(
            f"compress: {kind} came without an image processor (preprocessor_config.json), so images cannot "
            "be made to fit it. Save its processor beside it, or give batches of pixel_values from Python."
        )
    if not _is_folder(calibration):
        raise DataError(
            f"compress: the images of {evaluation} are there to evaluate on, but there are none to calibrate "
            "with. Give a folder of images (or batches, from Python) as the calibration, too."
        )
    patch = getattr(getattr(source.model, "config", None), "patch_size", None)
    patch = patch if isinstance(patch, int) and patch > 0 else 16
    images = read_images(calibration)
    heldout: Images | None = None
    if evaluation is None:
        images, heldout = images.split(HELD_OUT, seed=seed)
    elif _is_folder(evaluation):
        heldout = read_images(evaluation)
    elif _is_text(evaluation):
        raise DataError(f"compress: {kind} reads images; {evaluation!r} is no folder of images.")

    def batches_of(given: Images, tokens: int | None = None) -> list[Any]:
        return image_batches(given, source.processor, tokens=tokens, patch=patch, seed=seed)

    rows = batches_of(images, tokens)
    count, (height, width) = sum(map(_images_in, rows)), rows[0]["pixel_values"].shape[2:]
    about = {
        "text": _counted(count, images),
        "images": count,
        "tokens": count * max((height // patch) * (width // patch), 1),
    }
    if heldout is None:
        found = _batches(evaluation, "evaluation")
        return Inputs(rows, found, found[0], about, f"{len(found)} batches given in Python")
    found = batches_of(heldout)
    told = _counted(sum(map(_images_in, found)), heldout, "other " if evaluation is None else "")
    return Inputs(rows, found, found[0], about, told)


def _counted(count: int, images: Images, other: str = "") -> str:
    return f"{count} {other}image{'' if count == 1 else 's'} of {images.name}"


def _images_in(row: Mapping[str, Tensor]) -> int:
    return len(row["pixel_values"])


def _read(given: Any, builtin: str) -> Text:
    if isinstance(given, Text):
        return given
    if given is None and builtin == "heldout":
        paragraphs = builtin_text("heldout")
        note = f"built-in English text: {len(paragraphs)} other paragraphs of the Python documentation"
        return Text(paragraphs, "built-in", note)
    return read_text(given)


def _pairs(source: Source, task: str) -> bool:
    """Whether the model reads a text and its answer.

    The same text as its own answer would calibrate the decoder and the cross-attention on copying, which is
    not what they do. Classifiers are trained just so, and make the decoder's inputs themselves.
    """
    # The configuration's is_encoder_decoder is true of encoders too that were cut out of such a model.
    return task != "classifier" and "decoder_input_ids" in signature(source.model.forward).parameters


def _deaf(source: Source, task: str) -> str | None:
    """Return why text cannot be fed to the model; None if it can."""
    kind = type(source.model).__name__
    if _pairs(source, task):
        return f"{kind} is an encoder-decoder, which reads pairs of a text and its answer"
    return f"{kind} has no tokenizer" if source.tokenizer is None else None


def _without_text(source: Source, task: str, calibration: Any, evaluation: Any, needed: bool) -> Inputs:
    why = _deaf(source, task)
    if needed or calibration is not None or evaluation is not None:
        pairs = _pairs(source, task)
        example = "'input_ids': ..., 'decoder_input_ids': ..." if pairs else "'pixel_values': ..."
        raise DataError(
            f"compress: {why}, so it cannot be calibrated with text. Give inputs from "
            f"Python: compress(model, calibration=[{{{example}}}, ...]) (a list of tensors, tuples or "
            f"dictionaries), {'' if pairs else 'or pass a tokenizer, '}or use the weight-only method 'svd'."
        )
    note = f"{why}: nothing was calibrated or evaluated. Give calibration=... from Python."
    return Inputs([], [], None, {"text": "none", "tokens": 0}, "nothing", notes=[note])


def _tokenizer(source: Source, task: str) -> Any:
    if (why := _deaf(source, task)) is not None:
        remedy = "Give" if _pairs(source, task) else "Pass tokenizer=... or give"
        raise DataError(
            f"compress: {why}, so text cannot be fed to it. {remedy} batches of inputs from Python as both "
            "calibration=... and evaluation=..."
        )
    return source.tokenizer


def _longest(source: Source) -> int:
    """Return how many tokens the model can take."""
    limits = [getattr(getattr(source.model, "config", None), "max_position_embeddings", None)]
    limits.append(getattr(source.tokenizer, "model_max_length", None))
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    # RoBERTa numbers its positions from 2 on, so the table is two longer than the longest text.
    return max(min(known) - 2, 1) if known else MAX_LENGTH


def _batches(given: Any, name: str) -> list[Any]:
    if isinstance(given, (Tensor, Mapping)) or not isinstance(given, Iterable):
        raise DataError(
            f"compress: {name} is {type(given).__name__}; expected a list of batches (tensors, tuples or "
            "dictionaries of keyword tensors), a text file or a list of texts. Put a single batch in a list."
        )
    rows = list(given)
    if not rows:
        raise DataError(f"compress: {name} is empty. Give at least one batch of inputs.")
    return rows


def _count(rows: Sequence[Mapping[str, Tensor]]) -> int:
    return sum(
        int(row["attention_mask"].sum()) if "attention_mask" in row else row["input_ids"].numel()
        for row in rows
    )
