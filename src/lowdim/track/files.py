"""Files: time series and image stacks as people have them, read as frames with NaN for gaps."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdim.errors import DataError, MissingExtra, ShapeError
from lowdim.runs import digest

if TYPE_CHECKING:
    import pandas

__all__ = ["Frames", "frames_of", "read_frames"]

TABLES = (".csv", ".tsv", ".parquet")
ARRAYS = (".npy", ".npz")
IMAGES = (".tif", ".tiff", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".bmp")
SEPARATORS = ",;\t"


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames in the order of the file.

    Parameters
    ----------
    values : ndarray of shape (T, d)
        NaN where nothing was seen.
    times : ndarray of shape (T,) or None
        Numbers or dates, where the file has them.
    names : tuple of str
        Of the d columns of a table; empty for arrays and images.
    shape : tuple of int
        What the file held: (T, d), or (T, height, width).
    time_name : str or None
        The column of the times.

    Examples
    --------
    >>> Frames(np.zeros((3, 4)), None, (), (3, 2, 2)).stack
    True
    """

    values: np.ndarray
    times: np.ndarray | None
    names: tuple[str, ...]
    shape: tuple[int, ...]
    time_name: str | None = None

    @property
    def stack(self) -> bool:
        """Whether every frame is an image."""
        return len(self.shape) == 3

    def digest(self) -> str:
        """Return the SHA-256 of numbers, times and names."""
        times = np.zeros(0) if self.times is None else np.asarray(self.times)
        kinds = [str(self.values.dtype), str(times.dtype), *self.shape, *self.names]
        return digest(np.ascontiguousarray(self.values).tobytes(), np.array(times).tobytes(), kinds)


def read_frames(
    path: str | os.PathLike[str], *, time: str | None = None, columns: Sequence[str] | None = None
) -> Frames:
    r"""Read frames from a file or a folder of images.

    Parameters
    ----------
    path : path
        CSV, TSV or Parquet: one row per time; empty cells and NaN are gaps. NPY, or NPZ with one array
        besides the times: (T, d), or a stack (T, height, width). TIFF, GIF and other images with several
        frames, or a folder of images in the order of their names: a gray stack, of which fully transparent
        pixels are gaps.
    time : str, optional
        Column (of NPZ: array) of the times, numbers or dates. Without it the first column of a table is taken
        if it holds dates.
    columns : sequence of str, optional
        Columns of a table to read; all but the times by default.

    Returns
    -------
    Frames

    Raises
    ------
    DataError
        If the file is missing or damaged, a column is unknown or holds no numbers, or images differ in size.
    MissingExtra
        For Parquet without pyarrow, and images without Pillow.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "sales.csv"
    ...     _ = path.write_text("day,a,b\n2024-01-01,1,2\n2024-01-02,,4\n")
    ...     frames = read_frames(path)
    >>> frames.names, frames.time_name
    (('a', 'b'), 'day')
    >>> frames.values
    array([[ 1.,  2.],
           [nan,  4.]])
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"track: there is no file {path}. Check the name.")
    suffix = path.suffix.lower()
    if not path.is_dir() and suffix not in (*TABLES, *ARRAYS, *IMAGES):
        raise DataError(
            f"track: {path.name} has no known format. Give {', '.join((*TABLES, *ARRAYS, *IMAGES))}, or a "
            "folder of images."
        )
    if not path.is_dir() and suffix in TABLES:
        return _frames_of_table(_read_table(path), path.name, time, columns)
    if columns:
        raise DataError(f"track: {path.name} is no table, so it has no columns to choose. Leave them out.")
    if not path.is_dir() and suffix in ARRAYS:
        return _read_arrays(path, time)
    if time is not None:
        raise DataError(
            f"track: images carry no times, so there is no column {time!r}. Leave it out: frames are evenly "
            "spaced."
        )
    stack = _read_images(path)
    return Frames(stack.reshape(len(stack), -1), None, (), stack.shape)


def frames_of(source: Any, *, time: str | None = None, columns: Sequence[str] | None = None) -> Frames:
    """Return frames from whatever a user has: a path, a table of pandas, or an array.

    Parameters
    ----------
    source : path, DataFrame, or array-like of shape (T, d) or (T, height, width)
        An index of dates tells the times.
    time, columns
        Of files and tables, as in `read_frames`.

    Returns
    -------
    Frames

    Raises
    ------
    ShapeError, DataError, MissingExtra
        If it cannot be used.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_frames(source, time=time, columns=columns)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        table = source.reset_index() if source.index.dtype.kind == "M" else source
        return _frames_of_table(table.rename(columns=str), "the table", time, columns)
    if time is not None or columns:
        raise DataError(
            "track: time and columns name columns of a table. Give the times of an array as t=..."
        )
    array = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    if array.ndim not in (2, 3) or not array.size:
        raise ShapeError(
            f"track: got an array of shape {array.shape}, expected (times, features) or (times, height, "
            "width)."
        )
    if array.dtype.kind not in "fciub":
        raise DataError(f"track: the array holds {array.dtype}, expected numbers with NaN for gaps.")
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    return Frames(array.reshape(len(array), -1), None, (), array.shape)


# ----- tables -----------------------------------------------------------------------------------------


def _read_table(path: Path) -> pandas.DataFrame:
    import pandas

    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
        separator = max(SEPARATORS, key=first.count)
        heads = next(csv.reader([first], delimiter=separator), [])
        # Without a heading the first frame must not become one.
        header = None if heads and all(map(_is_number, heads)) else 0
        table = pandas.read_csv(
            path,
            sep=separator,
            header=header,
            float_precision="round_trip",
            low_memory=False,
            encoding="utf-8-sig",
        )
    except (OSError, ValueError) as error:
        # Parser errors of pandas and wrong encodings are ValueErrors.
        raise DataError(
            f"track: {path.name} cannot be read as a table ({_line(error)}). Give comma separated text in "
            "UTF-8, with one row per time."
        ) from error
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _read_parquet(path: Path) -> pandas.DataFrame:
    import pandas

    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="compress", purpose="read Parquet files") from None
    try:
        table = parquet.read_table(path).to_pandas()
    except (OSError, ValueError) as error:
        raise DataError(
            f"track: {path.name} cannot be read as Parquet ({_line(error)}). Write it again."
        ) from error
    if not isinstance(table.index, pandas.RangeIndex):
        table = table.reset_index()
    table.columns = [str(name) for name in table.columns]
    return table


def _frames_of_table(
    table: pandas.DataFrame, name: str, time: str | None, columns: Sequence[str] | None
) -> Frames:
    import pandas

    for wanted in (*([time] if time is not None else []), *(columns or ())):
        if wanted not in table.columns:
            listed = ", ".join(table.columns[:8]) + (", ..." if len(table.columns) > 8 else "")
            raise DataError(f"track: {name} has no column {wanted!r}. Columns: {listed}.")
    times = None
    if time is not None:
        times = _times_of_column(table[time], name)
    elif len(table.columns) and table.columns[0] not in (columns or ()):
        times = _dates(table.iloc[:, 0])
        time = table.columns[0] if times is not None else None
    chosen = list(columns) if columns else [column for column in table.columns if column != time]
    if not chosen or not len(table):
        raise DataError(f"track: {name} holds no numbers besides the times. Give one column per feature.")
    numbers = table[chosen]
    for column in chosen:
        values = numbers[column]
        if not (pandas.api.types.is_numeric_dtype(values) or values.isna().all()):
            example = next(value for value in values if not pandas.isna(value) and not _is_number(value))
            raise DataError(
                f"track: column {column!r} of {name} holds {str(example)[:30]!r}, expected numbers (empty "
                f"cells are gaps). If it tells the time, say so with --time {column!r}; else name the "
                "columns to read with --column."
            )
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    return Frames(values, times, tuple(chosen), values.shape, time)


def _times_of_column(column: pandas.Series, name: str) -> np.ndarray:
    import pandas

    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise DataError(
            f"track: the time {column.name!r} is missing in row {row + 1} of {name}. Drop the row, or date "
            "it."
        )
    if pandas.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=np.float64)
    dates = _dates(column)
    if dates is None:
        raise DataError(
            f"track: column {column.name!r} of {name} holds {str(column.iloc[0])[:30]!r}, expected times: "
            "numbers, or dates such as 2024-01-31 or 2024-01-31 12:00."
        )
    return dates


def _dates(column: pandas.Series) -> np.ndarray | None:
    """Return a column of dates as datetime64, or None if it holds anything else."""
    import pandas

    if pandas.api.types.is_numeric_dtype(column) or column.isna().any():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that pandas has to guess row by row
            found = pandas.to_datetime(column, utc=True)
    except (ValueError, TypeError):
        return None
    return found.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]")


# ----- arrays -----------------------------------------------------------------------------------------


def _read_arrays(path: Path, time: str | None) -> Frames:
    try:
        held = np.load(path, allow_pickle=False)
        arrays = {name: held[name] for name in held.files} if path.suffix.lower() == ".npz" else {"": held}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"track: {path.name} cannot be read ({_line(error)}). Save a plain numeric array with numpy.save."
        ) from error
    times = None
    if time is not None:
        if time not in arrays:
            known = ", ".join(filter(None, arrays)) or "one without a name"
            raise DataError(f"track: {path.name} has no array {time!r}. Arrays: {known}.")
        times = arrays.pop(time)
    if len(arrays) != 1:
        raise DataError(
            f"track: {path.name} holds {len(arrays)} arrays ({', '.join(arrays)}), expected one of frames. "
            "Name that of the times with --time, and save no others."
        )
    (values,) = arrays.values()
    if values.ndim not in (2, 3) or values.dtype.kind not in "fcbiu" or not values.size:
        raise DataError(
            f"track: {path.name} holds {values.dtype} of shape {values.shape}, expected numbers of shape "
            "(times, features) or (times, height, width)."
        )
    if values.dtype.kind in "biu" or values.dtype == np.float16:
        values = values.astype(np.float64)
    return Frames(values.reshape(len(values), -1), times, (), values.shape, time)


# ----- images -----------------------------------------------------------------------------------------


def _image_files(folder: Path) -> list[Path]:
    """Return the images of a folder; frame10 comes after frame9."""

    def natural(path: Path) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]

    return sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGES), key=natural)


def _read_images(path: Path) -> np.ndarray:
    """Return a gray stack (T, height, width) with NaN where it is transparent."""
    try:
        from PIL import Image, ImageSequence, UnidentifiedImageError
    except ImportError:
        raise MissingExtra("pillow", extra="compress", purpose="read images") from None
    files = _image_files(path) if path.is_dir() else [path]
    pictures: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                pictures += [_gray(frame) for frame in ImageSequence.Iterator(image)]
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
            raise DataError(
                f"track: {file.name} cannot be read as an image ({_line(error)}). Take it out, or save it "
                "again."
            ) from error
        if pictures[-1].shape != pictures[0].shape:
            height, width = pictures[-1].shape
            raise DataError(
                f"track: {file.name} has {width} x {height} pixels, the first image has "
                f"{pictures[0].shape[1]} x {pictures[0].shape[0]}. Bring all to one size."
            )
    if len(pictures) < 2:
        held = "one image" if pictures else "no image"
        raise DataError(
            f"track: {path.name} holds {held}, expected a sequence. Give a folder of images, or a TIFF or "
            "GIF with several frames."
        )
    return np.stack(pictures)


def _gray(image: Any) -> np.ndarray:
    """Return one frame as numbers; formats of 16 and 32 bit keep their range."""
    if image.mode in ("F", "I", "I;16", "I;16B", "I;16L", "L", "1"):
        return np.asarray(image, dtype=np.float64)
    # An animated GIF uses transparency for what has not changed: that is no gap.
    if image.mode in ("LA", "RGBA", "PA") and image.format != "GIF":
        pairs = np.asarray(image.convert("LA"), dtype=np.float64)
        return np.where(pairs[..., 1] == 0, np.nan, pairs[..., 0])
    return np.asarray(image.convert("L"), dtype=np.float64)


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def _line(error: Exception) -> str:
    """Return the first line of what another library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
