"""Frames from the files that people have, and refusals that say what is wrong with them."""

import builtins

import numpy as np
import pandas as pd
import pytest

from lowdim.errors import DataError, MissingExtra, ShapeError
from lowdim.track import read_frames
from lowdim.track.files import frames_of

NAN = np.nan


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_with_dates_gaps_and_names(tmp_path):
    path = write(tmp_path / "a.csv", "day,a,b\n2024-01-03,1,\n2024-01-01,NaN,4.5\n")
    frames = read_frames(path)
    np.testing.assert_array_equal(frames.values, [[1, NAN], [NAN, 4.5]])
    assert (frames.names, frames.time_name, frames.shape) == (("a", "b"), "day", (2, 2))
    np.testing.assert_array_equal(
        frames.times, np.array(["2024-01-03", "2024-01-01"], dtype="datetime64[ns]")
    )
    assert not frames.stack


def test_a_first_column_of_numbers_is_data_unless_it_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "year,a\n1990,1\n1991,2\n")
    assert read_frames(path).names == ("year", "a")
    assert read_frames(path).times is None
    frames = read_frames(path, time="year")
    assert frames.names == ("a",)
    np.testing.assert_array_equal(frames.times, [1990.0, 1991.0])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators(tmp_path, separator):
    path = write(tmp_path / "a.tsv", f"a{separator}b\n1{separator}2\n3{separator}4\n")
    np.testing.assert_array_equal(read_frames(path).values, [[1, 2], [3, 4]])


def test_a_table_without_a_heading_loses_no_row(tmp_path):
    path = write(tmp_path / "a.csv", "1,2\n3,4\n5,6\n")
    frames = read_frames(path)
    assert frames.values.shape == (3, 2)
    assert frames.names == ("0", "1")


def test_columns_are_chosen_in_their_order(tmp_path):
    path = write(tmp_path / "a.csv", "name,a,b,c\nx,1,2,3\ny,4,5,6\n")
    frames = read_frames(path, columns=["c", "a"])
    assert frames.names == ("c", "a")
    np.testing.assert_array_equal(frames.values, [[3, 1], [6, 4]])


def test_numbers_keep_every_digit(tmp_path):
    number = 0.1234567890123456
    path = write(tmp_path / "a.csv", f"a,b\n{number!r},1\n2,1e-300\n")
    assert read_frames(path).values[0, 0] == number


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,x\n2,3\n", {}, "column 'b' of a.csv holds 'x', expected numbers"),
        ("a,b\n1,2\n", {"time": "t"}, "a.csv has no column 't'. Columns: a, b."),
        ("a,b\n1,2\n", {"columns": ["c"]}, "a.csv has no column 'c'"),
        ("t,b\n,2\n1,3\n", {"time": "t"}, "the time 't' is missing in row 1"),
        ("t,b\nsoon,2\nlater,3\n", {"time": "t"}, "holds 'soon', expected times"),
        ("day\n2024-01-01\n2024-01-02\n", {}, "holds no numbers besides the times"),
        ("a,b\n", {}, "holds no numbers"),
        ("", {}, "cannot be read as a table"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, options, message):
    with pytest.raises(DataError) as caught:
        read_frames(write(tmp_path / "a.csv", text), **options)
    assert message in str(caught.value)


def test_text_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("köln,b\n1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_frames(tmp_path / "a.csv")


def test_missing_files_and_unknown_formats(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_frames(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"a\.xlsx has no known format"):
        read_frames(write(tmp_path / "a.xlsx", ""))


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame(
        {"a": [1.0, None], "b": [3, 4]}, index=pd.date_range("2024-01-01", periods=2, name="day")
    )
    table.to_parquet(tmp_path / "a.parquet")
    frames = read_frames(tmp_path / "a.parquet")
    np.testing.assert_array_equal(frames.values, [[1, 3], [NAN, 4]])
    assert frames.time_name == "day"
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_frames(tmp_path / "b.parquet")


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.tif", "pillow")])
def test_missing_packages_are_named_with_their_extra(tmp_path, monkeypatch, name, package):
    real = builtins.__import__

    def without(wanted, *rest):
        if wanted.split(".")[0] in ("pyarrow", "PIL"):
            raise ImportError(wanted)
        return real(wanted, *rest)

    path = write(tmp_path / name, "")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra) as caught:
        read_frames(path)
    assert package in str(caught.value)
    assert "lowdim[compress]" in str(caught.value)


def test_npy_of_frames_and_of_images(tmp_path):
    stack = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", stack)
    frames = read_frames(tmp_path / "a.npy")
    np.testing.assert_array_equal(frames.values, stack.reshape(2, 12))
    assert frames.stack
    assert frames.shape == (2, 3, 4)
    assert frames.values.dtype == np.float64
    np.save(tmp_path / "b.npy", stack[0] * 1j)
    assert read_frames(tmp_path / "b.npy").values.dtype == np.complex128


def test_npz_with_times(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.eye(3), t=[0.0, 1.0, 5.0])
    frames = read_frames(tmp_path / "a.npz", time="t")
    np.testing.assert_array_equal(frames.times, [0, 1, 5])
    np.testing.assert_array_equal(frames.values, np.eye(3))
    with pytest.raises(DataError, match="holds 2 arrays"):
        read_frames(tmp_path / "a.npz")
    with pytest.raises(DataError, match="has no array 'u'"):
        read_frames(tmp_path / "a.npz", time="u")


def test_arrays_that_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match="expected numbers of shape"):
        read_frames(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Save a plain numeric array"):
        read_frames(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.eye(3))
    with pytest.raises(DataError, match="is no table"):
        read_frames(tmp_path / "c.npy", columns=["a"])


class TestImages:
    @pytest.fixture
    def image(self):
        return pytest.importorskip("PIL.Image")

    def test_a_tiff_with_several_frames_keeps_its_numbers(self, image, tmp_path):
        stack = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
        first, second = map(image.fromarray, stack)
        first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
        frames = read_frames(tmp_path / "a.tif")
        assert frames.shape == (2, 3, 4)
        np.testing.assert_array_equal(frames.values, stack.reshape(2, 12))

    def test_a_gif(self, image, tmp_path):
        pictures = [image.new("L", (4, 3), value) for value in (10, 200)]
        pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
        np.testing.assert_array_equal(read_frames(tmp_path / "a.gif").values, [[10] * 12, [200] * 12])

    def test_a_folder_in_the_order_of_its_numbers_with_transparent_gaps(self, image, tmp_path):
        for number in (9, 10):
            pair = np.full((2, 2, 2), number, dtype=np.uint8)
            pair[0, 1, 1] = 0
            image.fromarray(pair).save(tmp_path / f"frame{number}.png")
        (tmp_path / "notes.txt").write_text("not an image")
        frames = read_frames(tmp_path)
        np.testing.assert_array_equal(frames.values, [[9, NAN, 9, 9], [10, NAN, 10, 10]])

    def test_what_is_refused(self, image, tmp_path):
        image.new("L", (4, 3)).save(tmp_path / "a.png")
        with pytest.raises(DataError, match="holds one image, expected a sequence"):
            read_frames(tmp_path / "a.png")
        image.new("L", (5, 3)).save(tmp_path / "b.png")
        with pytest.raises(DataError, match=r"b\.png has 5 x 3 pixels, the first image has 4 x 3"):
            read_frames(tmp_path)
        (tmp_path / "b.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"b\.png cannot be read as an image"):
            read_frames(tmp_path)
        with pytest.raises(DataError, match="images carry no times"):
            read_frames(tmp_path, time="t")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="holds no image"):
            read_frames(tmp_path / "empty")


def test_tables_and_arrays_in_memory():
    table = pd.DataFrame({1: [1.0, 2.0], 2: [3.0, NAN]}, index=pd.date_range("2024-01-01", periods=2))
    frames = frames_of(table)
    assert frames.names == ("1", "2")
    assert frames.times[1] == np.datetime64("2024-01-02")
    assert frames_of([[1, 2], [3, 4]]).values.dtype == np.float64
    assert frames_of(np.zeros((4, 2, 3))).stack
    with pytest.raises(ShapeError, match="expected \\(times, features\\)"):
        frames_of(np.zeros(3))
    with pytest.raises(DataError, match="Give the times of an array"):
        frames_of(np.zeros((3, 2)), time="t")


def test_the_digest_sees_numbers_times_and_names(tmp_path):
    texts = ["t,a\n1,2\n2,3\n", "t,a\n1,2\n2,4\n", "t,a\n1,2\n3,3\n", "t,b\n1,2\n2,3\n"]
    digests = {read_frames(write(tmp_path / "a.csv", text), time="t").digest() for text in texts}
    assert len(digests) == 4
    assert read_frames(write(tmp_path / "b.csv", texts[0]), time="t").digest() in digests
