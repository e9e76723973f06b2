"""Files of every kind, and every refusal by its message."""

import numpy as np
import pandas as pd
import pytest

from lowdim.errors import DataError, MissingExtra, ShapeError
from lowdim.regress import Collection, read_collection
from lowdim.regress.files import collection_of, mask_of

X = np.random.default_rng(0).normal(size=(5, 3, 2))
Y = np.array([1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.fixture
def pictures(tmp_path):
    """Folders a and b with three and two images of 4 x 3 pixels."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for folder, count in (("a", 3), ("b", 2)):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for i in range(count):
            gray = np.full((4, 3), 10 * i + (folder == "b"), dtype=np.uint8)
            image.fromarray(gray).save(tmp_path / "pictures" / folder / f"{8 + i}.png")
    return tmp_path / "pictures"


def table(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_tables(tmp_path):
    path = table(tmp_path / "t.csv", a=[1, 2], b=[3.5, np.nan], target=["x", "y"])
    found = read_collection(path)
    assert (found.features, found.kind, found.target) == (("a", "b"), "table", "target")
    np.testing.assert_array_equal(found.X, [[1, 3.5], [2, np.nan]])
    assert found.y.tolist() == ["x", "y"]
    other = read_collection(table(tmp_path / "n.csv", a=[1, 2], b=[3, 4]), target="b")
    assert (other.y.tolist(), other.features, other.samples) == ([3, 4], ("a",), ("0", "1"))
    (tmp_path / "s.tsv").write_text("name\ta\ty\nfirst\t1\t2\nsecond\t3\t4\n")
    named = read_collection(tmp_path / "s.tsv")
    assert (named.samples, named.features) == (("first", "second"), ("a",))
    assert read_collection(tmp_path / "s.tsv", features=["a"], target="none").y.tolist() == [2, 4]


def test_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    found = read_collection(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.X, X)
    np.testing.assert_array_equal(found.y, Y)
    np.savez(tmp_path / "b.npz", scans=X, age=Y, site=Y)
    assert read_collection(tmp_path / "b.npz").y is None
    assert read_collection(tmp_path / "b.npz", target="age").target == "age"
    np.save(tmp_path / "c.npy", X)
    labels = table(tmp_path / "l.csv", who=list("abcde"), age=Y)
    assert read_collection(tmp_path / "c.npy", labels=labels).y.tolist() == Y.tolist()
    assert read_collection(tmp_path / "c.npy", labels=labels, target="who").y.tolist() == list("abcde")


def test_a_folder_per_class(pictures):
    found = read_collection(pictures)
    assert found.X.shape == (5, 4, 3)
    assert found.y.tolist() == ["a", "a", "a", "b", "b"]
    # 9 comes before 10.
    assert found.samples == ("a/8.png", "a/9.png", "a/10.png", "b/8.png", "b/9.png")
    assert found.X[:, 0, 0].tolist() == [0, 10, 20, 1, 11]
    assert found.kind == "images"


@pytest.mark.parametrize("form", ["{}.png", "{}", "a/{}.png"])
def test_a_folder_with_a_table_of_labels(pictures, tmp_path, form):
    names = [form.format(n) for n in (10, 8, 9)]
    labels = table(tmp_path / "l.csv", age=[30, 10, 20], file=names)
    source = pictures if "a/" in form else pictures / "a"
    if "a/" in form:
        for path in (pictures / "b").iterdir():
            path.unlink()
    assert read_collection(source, labels=labels, target="age").y.tolist() == [10, 20, 30]


def test_only_a_column_that_names_all_files_is_taken(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    folder = tmp_path / "p"
    folder.mkdir()
    for i in (1, 2, 3):
        image.fromarray(np.full((2, 2), i, dtype=np.uint8)).save(folder / f"{i}.png")
    read = lambda **columns: read_collection(folder, labels=table(tmp_path / "l.csv", **columns))  # noqa: E731
    files = ["3.png", "1.png", "2.png"]
    # Visits and ages are numbers like the stems of the files, and come first.
    assert read(visit=[1, 1, 2], file=files, y=[30, 10, 20]).y.tolist() == [10, 20, 30]
    assert read(age=[1, 2, 3], file=files, y=[30, 10, 20]).y.tolist() == [10, 20, 30]
    # Columns that agree do no harm.
    assert read(a=files, b=files, y=[30, 10, 20]).y.tolist() == [10, 20, 30]
    with pytest.raises(DataError, match=r"columns 'age' and 'id' of the labels both name all files"):
        read(age=[1, 2, 3], id=[3, 1, 2], y=[30, 10, 20])
    with pytest.raises(DataError, match=r"name 1.png in column 'file' in 2 rows \(2, 4\)"):
        read(file=[*files, "1.png"], y=[30, 10, 20, 11])
    with pytest.raises(DataError, match=r"name no 3.png in column 'file'"):
        read(age=[1, 1, 7], file=["9.png", "1.png", "2.png"], y=[30, 10, 20])
    with pytest.raises(DataError, match=r"the target 'y' is missing in row 3"):
        read(file=["3.png", "2.png", "1.png"], y=[30, 10, np.nan])


def test_numbers_of_files_keep_their_zeros(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for i in (1, 2):
        image.fromarray(np.full((2, 2), i, dtype=np.uint8)).save(tmp_path / f"00{i}.png")
    (tmp_path / "l.csv").write_text("id,y\n002,20\n001,10\n")
    assert read_collection(tmp_path, labels=tmp_path / "l.csv").y.tolist() == [10, 20]


def test_new_samples_need_no_targets(tmp_path):
    path = table(tmp_path / "t.csv", a=[1, 2], name=["p", "q"], y=[3, None], age=[4, 5])
    found = read_collection(path, features=["a"], target="y", new=True)
    assert found.samples == ("p", "q")
    np.testing.assert_array_equal(found.y, [3, np.nan])
    assert read_collection(path, features=["a"], target="weight", new=True).y is None
    empty = table(tmp_path / "e.csv", a=[1, 2], y=[None, None])
    assert read_collection(empty, features=["a"], target="y", new=True).y is None
    np.savez(tmp_path / "a.npz", X=X, y=Y, age=2 * Y)
    assert read_collection(tmp_path / "a.npz", target="age", new=True).target == "age"
    assert read_collection(tmp_path / "a.npz", target="weight", new=True).y is None
    assert read_collection(tmp_path / "a.npz", target="folder", new=True).y.tolist() == Y.tolist()


def test_volumes(tmp_path):
    nibabel = pytest.importorskip(
        "nibabel", reason="nibabel is not installed (pip install 'lowdim[imaging]')"
    )
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    series = np.random.default_rng(0).normal(size=(4, 3, 2, 5)).astype(np.float32)
    (tmp_path / "v").mkdir()
    for i in range(5):
        nibabel.save(nibabel.Nifti1Image(series[..., i], affine), tmp_path / "v" / f"s{i}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(series, affine), tmp_path / "series.nii")
    labels = table(tmp_path / "l.csv", file=[f"s{i}" for i in range(5)], y=Y)
    for path in (tmp_path / "v", tmp_path / "series.nii"):
        found = read_collection(path, labels=labels)
        np.testing.assert_array_equal(found.X, np.moveaxis(series, -1, 0))
        assert found.X.dtype == np.float32
        np.testing.assert_array_equal(found.affine, affine)
        assert found.y.tolist() == Y.tolist()
    nibabel.save(nibabel.Nifti1Image((series[..., 0] > 0).astype(np.uint8), affine), tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask_of(tmp_path / "mask.nii.gz"), series[..., 0] > 0)
    nibabel.save(nibabel.Nifti1Image(series[..., 0], 2 * affine), tmp_path / "v" / "s5.nii")
    with pytest.raises(DataError, match=r"s5.nii lies elsewhere in space than s0.nii.gz"):
        read_collection(tmp_path / "v")
    nibabel.save(nibabel.Nifti1Image(series[:3, ..., 0], affine), tmp_path / "v" / "s5.nii")
    with pytest.raises(ShapeError, match=r"s5.nii has \(3, 3, 2\) voxels, s0.nii.gz has \(4, 3, 2\)"):
        read_collection(tmp_path / "v")
    (tmp_path / "v" / "s5.nii").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"s5.nii cannot be read as NIfTI"):
        read_collection(tmp_path / "v")
    with pytest.raises(ShapeError, match=r"s0.nii.gz holds one volume, expected a series"):
        read_collection(tmp_path / "v" / "s0.nii.gz")


def test_without_nibabel_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "nibabel", None)
    (tmp_path / "a.nii").write_bytes(b"x")
    with pytest.raises(MissingExtra, match=r"pip install 'lowdim\[imaging\]'"):
        read_collection(tmp_path / "a.nii")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(MissingExtra, match=r"pip install 'lowdim\[images\]'"):
        read_collection(tmp_path)


def test_arrays_and_tables_in_memory():
    found = collection_of(X, Y)
    assert isinstance(found, Collection)
    np.testing.assert_array_equal(found.y, Y)
    frame = pd.DataFrame({0: [1.0, 2.0], "y": [3.0, 4.0]})
    assert collection_of(frame).features == ("0",)
    assert collection_of(frame, [5, 6]).y.tolist() == [5, 6]
    assert collection_of(X, Y).digest() == collection_of(X.copy(), Y).digest()
    assert collection_of(X, Y).digest() != collection_of(X, Y[::-1].copy()).digest()
    np.testing.assert_array_equal(mask_of([[0, 2], [1, 0]]), [[False, True], [True, False]])
    assert mask_of(None) is None


def refused(text, path, error=DataError, **options):
    with pytest.raises(error, match=text):
        read_collection(path, **options)


def test_refusals_of_tables(tmp_path):
    path = table(tmp_path / "t.csv", a=[1, 2], b=["u", "v"], y=[1, 2])
    refused("column 'b' of t.csv holds 'u', expected numbers. If it is the target, say --target 'b'", path)
    refused("t.csv has no column 'z'. Columns: a, b, y", path, target="z")
    refused("t.csv has no column 'c'", path, features=["c"])
    refused("is a table and holds its targets", path, labels=path)
    refused("holds no numbers beside the target", table(tmp_path / "o.csv", y=[1, 2]))
    refused("the target 'y' is missing in row 2", table(tmp_path / "m.csv", a=[1, 2], y=[1, np.nan]))
    (tmp_path / "n.csv").write_text("1,2\n3,4\n")
    refused("n.csv begins with numbers, expected a line of column names", tmp_path / "n.csv")
    (tmp_path / "w.csv").write_bytes(b"a,y\n\xff,1\n")
    refused("w.csv cannot be read as a table", tmp_path / "w.csv")


def test_refusals_of_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    refused("has no array 'z'. Arrays: X, y", tmp_path / "a.npz", target="z")
    (tmp_path / "b.npz").write_bytes(b"nonsense")
    refused("b.npz cannot be read", tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", X=X, y=Y[:3])
    refused(r"y of c.npz has shape \(3,\), expected \(5,\)", tmp_path / "c.npz", ShapeError)
    np.savez(tmp_path / "d.npz", X=X.astype(str), y=Y)
    refused("d.npz holds <U", tmp_path / "d.npz")
    np.save(tmp_path / "e.npy", X)
    labels = table(tmp_path / "l.csv", y=Y[:3])
    refused("the labels have 3 rows for 5 samples", tmp_path / "e.npy", ShapeError, labels=labels)
    refused("there is no file", tmp_path / "e.npy", labels=tmp_path / "none.csv")
    np.savez(tmp_path / "f.npz", a=Y, b=Y)
    refused("holds 0 arrays of samples", tmp_path / "f.npz")
    np.save(tmp_path / "g.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("g.npy cannot be read", tmp_path / "g.npy")


def test_refusals_of_folders(pictures, tmp_path):
    labels = table(tmp_path / "l.csv", file=["a/8.png"], y=[1])
    refused(r"the labels name no a/9.png in column 'file'", pictures, labels=labels)
    labels = table(tmp_path / "l.csv", file=["dog"], y=[1])
    refused("no column of the labels holds the names of the files, such as a/8.png", pictures, labels=labels)
    (pictures / "a" / "8.png").rename(pictures / "8.png")
    refused("holds both files and folders of samples", pictures)
    (pictures / "8.png").write_bytes(b"nonsense")
    for folder in ("a", "b"):
        for path in (pictures / folder).iterdir():
            path.unlink()
    refused("8.png cannot be read as an image", pictures)
    (pictures / "9.nii").write_bytes(b"nonsense")
    refused("holds images and volumes. Keep one kind", pictures)
    refused("holds no images and no volumes", pictures / "a")


def test_images_of_other_sizes(pictures):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((5, 3), dtype=np.uint8)).save(pictures / "b" / "10.png")
    refused("10.png has 3 x 5 pixels, 8.png has 3 x 4", pictures, ShapeError)


def test_color_images_become_gray_and_wide_ones_keep_their_range(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((2, 2, 3), [255, 0, 0], dtype=np.uint8)).save(tmp_path / "1.png")
    image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)).save(tmp_path / "2.png")
    found = read_collection(tmp_path).X
    assert found[:, 0, 0].tolist() == [76, 40_000]


def test_other_refusals(tmp_path):
    with pytest.raises(DataError, match=r"got float64 of shape \(5,\), expected numbers of shape"):
        collection_of(Y)
    with pytest.raises(ShapeError, match=r"y has shape \(3,\), expected \(5,\): one target per sample"):
        collection_of(X, Y[:3])
    with pytest.raises(DataError, match="there is no mask"):
        mask_of(tmp_path / "none.npy")
    (tmp_path / "mask.txt").write_text("x")
    with pytest.raises(DataError, match=r"the mask mask.txt has no known format"):
        mask_of(tmp_path / "mask.txt")
