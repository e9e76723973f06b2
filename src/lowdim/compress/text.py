"""Text for calibration, recovery and evaluation: files, data sets and the built-in paragraphs."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowdim.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Text", "batches", "builtin_text", "read_text", "split_column"]

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
USUAL_COLUMNS = ("text", "sentence", "content")
CHARACTERS_PER_TOKEN = 6  # more than English needs


@dataclass(frozen=True)
class Text:
    """Paragraphs, where they come from, and a sentence for the report.

    Parameters
    ----------
    paragraphs : list of str
        The texts, white space collapsed, none empty.
    name : str
        The file or data set, without folders.
    note : str
        What was read, for the report.

    Examples
    --------
    >>> Text(["A man plays the flute."], name="three.txt", note="1 paragraph of three.txt").paragraphs
    ['A man plays the flute.']
    """

    paragraphs: list[str]
    name: str
    note: str


def builtin_text(split: Literal["calibration", "heldout"]) -> list[str]:
    """Return the frozen paragraphs of the Python documentation that ship with lowdim.

    Parameters
    ----------
    split : {"calibration", "heldout"}
        743 paragraphs to calibrate with, or 300 from other topics to evaluate with.

    Returns
    -------
    list of str
        Paragraphs of 80 to 600 characters; the two splits share none.

    Raises
    ------
    DataError
        For another split.

    Examples
    --------
    >>> len(builtin_text("calibration")), len(builtin_text("heldout"))
    (743, 300)
    """
    if split not in ("calibration", "heldout"):
        raise DataError(f"builtin_text: split={split!r} is unknown. Use 'calibration' or 'heldout'.")
    lines = (
        (Path(__file__).parent / "paragraphs" / "paragraphs.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return [row["text"] for row in map(json.loads, lines) if row["split"] == split]


def read_text(
    source: str | Path | Sequence[str] | None = None, *, column: str | None = None, limit: int = 50_000
) -> Text:
    r"""Read paragraphs from a file, a Hub data set, a list of strings, or take the built-in ones.

    Parameters
    ----------
    source : str, Path, sequence of str or None
        A ``.txt`` file (paragraphs between blank lines; without a blank line every line is one),
        a ``.jsonl``, ``.csv`` or ``.parquet`` file, the name of a Hub data set (``owner/name`` or
        ``owner/name@configuration``), a list of texts, or None for the built-in paragraphs.
        ``:column`` may be appended to a table's name; several columns are separated by commas.
    column : str, optional
        Column(s) that hold the text. Numbers mean positions in a CSV file without a header line.
        By default the only column, or the one named text, sentence or content.
    limit : int
        Largest number of paragraphs taken.

    Returns
    -------
    Text
        Distinct paragraphs in the order of the source.

    Raises
    ------
    DataError
        If the file is missing, unreadable or empty, or the column does not exist.
    MissingExtra
        If Parquet or a Hub data set needs a package that is not installed.

    Examples
    --------
    >>> read_text(["One  text.", "Another\ntext."]).paragraphs
    ['One text.', 'Another text.']
    >>> read_text().note
    'built-in English text: 743 paragraphs of the Python documentation'
    """
    if source is None:
        found = builtin_text("calibration")[:limit]
        note = f"built-in English text: {len(found)} paragraphs of the Python documentation"
        return Text(found, "built-in", note)
    if not isinstance(source, (str, Path)):
        return _text(source, "texts given in Python", limit)
    path, column = split_column(source, column)
    if path.is_dir():
        raise DataError(f"read_text: {path.name} is a folder. Give a file ({', '.join(SUFFIXES)}).")
    if path.is_file():
        return _text(_read_file(path, column), path.name, limit)
    if path.suffix.lower() in SUFFIXES:
        raise DataError(
            f"read_text: there is no file {path}. Check the path, or leave it out for the built-in text."
        )
    return _text(_read_hub(str(path), column, limit), str(path), limit)


def split_column(source: str | Path, column: str | None = None) -> tuple[Path, str | None]:
    """Split "file.csv:column" into the file and the column; an existing file of exactly that name wins.

    Parameters
    ----------
    source : str or Path
        As in `read_text`.
    column : str, optional
        A column named apart; then `source` is not split.

    Returns
    -------
    path : Path
    column : str or None

    Examples
    --------
    >>> path, column = split_column("news.csv:title")
    >>> path.name, column
    ('news.csv', 'title')
    """
    text = str(source)
    head, colon, tail = text.rpartition(":")
    if column is None and colon and len(head) > 1 and not Path(text).exists() and "/" not in tail:
        return Path(head), tail
    return Path(text), column


def _text(found: Iterable[Any], name: str, limit: int) -> Text:
    """Collapse white space, drop empty and repeated paragraphs, and describe what is left."""
    distinct: dict[str, None] = {}
    for number, item in enumerate(found, start=1):
        if item is None:
            continue
        if not isinstance(item, str):
            raise DataError(
                f"read_text: entry {number} of {name} is {type(item).__name__}, expected text. "
                "Name the column that holds text, as in data.csv:sentence."
            )
        if paragraph := " ".join(item.split()):
            distinct.setdefault(paragraph)
            if len(distinct) >= limit:
                break
    if not distinct:
        raise DataError(f"read_text: {name} holds no text. Give a file with at least one paragraph.")
    return Text(list(distinct), name, f"{len(distinct)} paragraphs of {name}")


def _read_file(path: Path, column: str | None) -> Iterable[Any]:
    """Dispatch on the suffix; unknown suffixes are read as plain text only when they decode."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, column)
    if suffix in (".json", ".xlsx", ".xls", ".gz", ".zip", ".pdf", ".docx"):
        raise DataError(
            f"read_text: {path.name} is not a format read here. Convert it to one of {', '.join(SUFFIXES)}."
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"read_text: {path.name} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None
    if suffix == ".jsonl":
        return _parse_jsonl(content, path.name, column)
    if suffix == ".csv":
        return _parse_csv(content, path.name, column)
    if column is not None:
        raise DataError(
            f"read_text: {path.name} is plain text and has no column {column!r}. Leave the column out."
        )
    # A file without any blank line is a list of sentences, one a line.
    return re.split(r"\n\s*\n", content) if re.search(r"\n\s*\n", content.strip()) else content.splitlines()


def _parse_jsonl(content: str, name: str, column: str | None) -> list[Any]:
    values = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"read_text: line {number} of {name} is not JSON ({error.msg}). One object a line."
            ) from None
        if isinstance(row, str):
            values.append(row)
            continue
        if not isinstance(row, dict):
            raise DataError(
                f"read_text: line {number} of {name} is {type(row).__name__}, expected an object or a string."
            )
        for key in _columns(list(row), name, column):
            values.append(row[key])
    return values


def _parse_csv(content: str, name: str, column: str | None) -> list[str]:
    rows = [row for row in csv.reader(content.splitlines(keepends=True)) if row]
    if not rows:
        raise DataError(f"read_text: {name} is empty. Give a file with at least one line.")
    wanted = column.split(",") if column else []
    if wanted and all(part.strip().isdigit() for part in wanted):
        places, rows_left = [int(part) for part in wanted], rows
    else:
        header = [cell.strip() for cell in rows[0]]
        places, rows_left = [header.index(key) for key in _columns(header, name, column)], rows[1:]
    for number, row in enumerate(rows, start=1):
        if max(places) >= len(row):
            raise DataError(
                f"read_text: line {number} of {name} has {len(row)} cells, column {max(places)} was wanted "
                "(the first is 0). Quote cells that contain commas."
            )
    return [row[place] for row in rows_left for place in places]


def _read_parquet(path: Path, column: str | None) -> list[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="compress", purpose="read Parquet files") from None
    try:
        file = parquet.ParquetFile(path)
        keys = _columns(file.schema_arrow.names, path.name, column)
        table = file.read(columns=keys)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"read_text: {path.name} cannot be read as Parquet ({error}).") from None
    columns = [table.column(key).to_pylist() for key in keys]
    return [value for row in zip(*columns, strict=True) for value in row]


def _read_hub(name: str, column: str | None, limit: int) -> list[Any]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            "datasets", extra="transformers", purpose=f"read the Hub data set {name}"
        ) from None
    identity, _, configuration = name.partition("@")
    try:
        rows = datasets.load_dataset(identity, configuration or None, split="train", streaming=True)
        rows = list(rows.take(limit))
    except Exception as error:  # the loader raises what its transport raises: one answer for all
        raise DataError(
            f"read_text: {name!r} is neither a file here nor a Hub data set that can be reached "
            f"({type(error).__name__}). Check the name and the network (HF_HUB_OFFLINE unset), or leave it "
            "out for the built-in text."
        ) from error
    keys = _columns(list(rows[0]) if rows else [], name, column)
    return [row[key] for row in rows for key in keys]


def _columns(present: list[str], name: str, column: str | None) -> list[str]:
    """Return the columns to read: the wanted ones, the only one, or the usual name."""
    if column is not None:
        wanted = [column] if column in present else [part.strip() for part in column.split(",")]
        if missing := [key for key in wanted if key not in present]:
            raise DataError(
                f"read_text: {name} has no column {missing[0]!r}. "
                f"Its columns are: {', '.join(map(str, present))}."
            )
        return wanted
    if len(present) == 1:
        return present
    if usual := [key for key in USUAL_COLUMNS if key in present]:
        return usual[:1]
    raise DataError(
        f"read_text: {name} has the columns {', '.join(map(str, present))}; which holds the text? "
        f"Write {name}:COLUMN (numbers, from 0, for a CSV file without a header line)."
    )


def batches(
    text: Text | Sequence[str],
    tokenizer: Any,
    *,
    tokens: int | None = 50_000,
    max_length: int = 128,
    batch_size: int = 32,
    seed: int = 0,
) -> list[dict[str, Tensor]]:
    """Tokenize paragraphs and group those of similar length, so that little is spent on padding.

    Parameters
    ----------
    text : Text or sequence of str
        The paragraphs. Those several times as long as `max_length` are cut in pieces at white space, the
        others are truncated.
    tokenizer : transformers tokenizer
        Called with a list of texts. Without a padding token its end-of-text token pads (masked).
    tokens : int or None
        Stop when so many tokens (padding not counted) are gathered; None takes all.
    max_length : int
        Longest text, in tokens.
    batch_size : int
        Texts per batch.
    seed : int
        Which paragraphs are taken when there are more than `tokens` needs.

    Returns
    -------
    list of dict of Tensor
        ``input_ids``, ``attention_mask`` (and what else the tokenizer gives), each (batch, seq), padded
        on the right, in the order of length.

    Raises
    ------
    DataError
        If a size is not positive or nothing is left to tokenize.

    Examples
    --------
    >>> import torch
    >>> class Letters:
    ...     pad_token = "-"
    ...     def __call__(self, texts, *, truncation, max_length):
    ...         rows = [[ord(c) for c in t][:max_length] for t in texts]
    ...         return {"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]}
    ...     def pad(self, rows, *, padding_side, return_tensors):
    ...         longest = max(map(len, rows["input_ids"]))
    ...         return {k: torch.tensor([v + [0] * (longest - len(v)) for v in rows[k]]) for k in rows}
    >>> [batch["input_ids"].shape for batch in batches(["abc", "de", "f"], Letters(), batch_size=2)]
    [torch.Size([2, 2]), torch.Size([1, 3])]
    """
    for name, value in {"tokens": tokens, "max_length": max_length, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise DataError(f"batches: {name}={value}, expected a positive number.")
    paragraphs = list(text.paragraphs if isinstance(text, Text) else text)
    pieces = [piece for p in paragraphs for piece in _pieces(p, CHARACTERS_PER_TOKEN * max_length)]
    if not pieces:
        raise DataError("batches: there is no text. Give at least one paragraph.")
    random.Random(seed).shuffle(pieces)
    if getattr(tokenizer, "pad_token", "present") is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows: dict[str, list[list[int]]] = {}
    gathered = 0
    for start in range(0, len(pieces), 256):
        encoded = tokenizer(pieces[start : start + 256], truncation=True, max_length=max_length)
        for i, ids in enumerate(encoded["input_ids"]):
            if not ids or (tokens is not None and gathered >= tokens):
                continue
            gathered += len(ids)
            for key in encoded:
                rows.setdefault(key, []).append(encoded[key][i])
        if tokens is not None and gathered >= tokens:
            break
    if not rows:
        raise DataError("batches: the tokenizer found no token in the text. Is it the model's own tokenizer?")
    order = sorted(range(len(rows["input_ids"])), key=lambda i: len(rows["input_ids"][i]))
    return [
        dict(
            tokenizer.pad(
                {key: [value[i] for i in order[start : start + batch_size]] for key, value in rows.items()},
                padding_side="right",
                return_tensors="pt",
            )
        )
        for start in range(0, len(order), batch_size)
    ]


def _pieces(paragraph: str, longest: int) -> list[str]:
    """Cut a paragraph at white space into pieces of at most `longest` characters.

    Up to twice that it stays one text: truncation then loses its end, and one paragraph is one input.
    """
    pieces: list[str] = []
    if len(paragraph) <= 2 * longest:
        return [paragraph]
    while len(paragraph) > longest:
        cut = paragraph.rfind(" ", 1, longest + 1)
        cut = cut if cut > 0 else longest
        pieces.append(paragraph[:cut])
        paragraph = paragraph[cut:].lstrip()
    return [*pieces, paragraph] if paragraph else pieces
