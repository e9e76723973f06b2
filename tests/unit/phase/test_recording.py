"""A recording is kept, read again, and refused where it does not fit."""

import dataclasses

import numpy as np
import pytest
import torch

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.phase import (
    CodedDiffraction,
    DenseMeasurement,
    Ptychography,
    Recording,
    read_recording,
    recording,
    simulate,
)

Q, H, W, M = 4, 3, 5, 7


def arrays(**other):
    rng = np.random.default_rng(0)
    return {"y": rng.random((Q, M)), "A": rng.normal(size=(Q, M, H, W)), **other}


def written(folder, **given):
    path = folder / "recording.npz"
    np.savez(path, **{name: value for name, value in given.items() if value is not None})
    return path


def kinds():
    rng = np.random.default_rng(0)
    X = rng.random((Q, 6, 6))
    yield "matrix", Recording(**arrays())
    yield "shared", Recording(rng.random((Q, M)), (H, W), A=rng.normal(size=(M, H * W)))
    yield "weighted", Recording(**arrays(weights=np.ones((Q, M))), intensity=True)
    yield "diffraction", simulate(X, kind="coded-diffraction")
    yield "whole", simulate(X, kind="coded-diffraction", measurements=2)
    yield "ptychography", simulate(X, kind="ptychography", measurements=4)
    yield "complex", simulate(X + 1j, kind="complex-gaussian")


@pytest.mark.parametrize("given", [pytest.param(value, id=name) for name, value in kinds()])
def test_what_is_saved_is_read_again(given, tmp_path):
    given.save(tmp_path / "a.npz")
    again = read_recording(tmp_path / "a.npz")
    for field in dataclasses.fields(Recording):
        before, after = getattr(given, field.name), getattr(again, field.name)
        assert (before is None) == (after is None), field.name
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after
    assert again.digest() == given.digest()
    x = torch.randn(Q, *given.image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(given.measurement().forward(x), again.measurement().forward(x))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_the_map_is_that_of_the_arrays():
    found = dict(kinds())
    assert type(found["matrix"].measurement()) is DenseMeasurement
    assert type(found["diffraction"].measurement()) is CodedDiffraction
    assert type(found["ptychography"].measurement()) is Ptychography
    assert found["shared"].measurement().frames is None
    assert found["diffraction"].kind == "coded diffraction"
    assert found["diffraction"].ratio == pytest.approx(0.5)
    assert found["whole"].kept is None


def test_tensors_and_whole_numbers_are_taken():
    made = Recording(torch.ones(2, 3), image_shape=torch.Size([2, 2]), A=torch.ones(3, 4, dtype=torch.int64))
    assert made.y.dtype == np.float32
    assert made.A.dtype == np.float64
    assert made.measurement().dtype == torch.float64


def test_every_array_counts_for_the_digest():
    first = Recording(**arrays())
    for name in ("y", "A"):
        changed = {**arrays(), name: 2 * arrays()[name]}
        assert Recording(**changed).digest() != first.digest()
    assert Recording(**arrays(), intensity=True).digest() != first.digest()
    assert Recording(**arrays(weights=np.ones((Q, M)))).digest() != first.digest()


MASKS, PROBE, PLACES = np.ones((2, 4, 4)), np.ones((2, 2)), np.zeros((3, 2), dtype=int)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"A": None}, "neither A, nor masks, nor a probe"),
        ({"masks": MASKS}, "A and masks at once"),
        ({"kept": np.arange(M)}, "kept belongs to masks"),
        ({"positions": PLACES}, "positions belongs to probe"),
        ({"A": None, "probe": PROBE}, "positions is missing"),
        ({"A": None, "probe": PROBE, "positions": PLACES}, "image_shape is missing"),
        ({"A": None, "masks": np.ones(3)}, "expected (masks, height, width)"),
        ({"A": None, "masks": MASKS}, "y has shape (4, 7), expected (frames, 32)"),
        ({"A": None, "masks": MASKS, "kept": np.arange(M) + 30}, "whole numbers from 0 to 31"),
        ({"A": None, "masks": MASKS, "kept": np.ones(M)}, "kept holds float64, expected whole numbers"),
        (
            {"A": None, "masks": MASKS, "kept": np.arange(M), "image_shape": (5, 5)},
            "masks are for images (4, 4)",
        ),
        ({"y": np.ones((Q, M + 1))}, "expected (frames, 7)"),
        ({"y": np.ones((Q + 1, M))}, "y has 5 frames, the map is of 4"),
        ({"y": np.ones(M)}, "y has shape (7,)"),
        ({"y": -np.ones((Q, M))}, "negative numbers, such as -1"),
        ({"y": np.full((Q, M), np.nan)}, "y holds NaN or infinite numbers. Set them to 0"),
        ({"y": np.ones((Q, M), dtype=complex)}, "y holds complex128, expected real numbers"),
        ({"A": np.full((Q, M, H, W), np.inf)}, "A holds NaN or infinite numbers"),
        ({"A": np.ones((Q, M, H * W))}, "does not tell the shape of an image"),
        ({"image_shape": (H, W + 1)}, "does not fit image_shape=(3, 6)"),
        ({"image_shape": (3.0, 5.0)}, "image_shape is [3.0, 5.0], expected positive whole numbers"),
        ({"image_shape": (0, 5)}, "expected positive whole numbers"),
        ({"frames": np.ones((Q, W, H))}, "frames have shape (4, 5, 3), expected (4, 3, 5)"),
        ({"frames": np.ones((Q, H, W), dtype=complex)}, "frames are complex, but A is real"),
        ({"frames": np.full((Q, H, W), np.nan)}, "frames holds NaN"),
        ({"weights": np.ones((Q, M + 1))}, "weights of shape (4, 8)"),
        ({"weights": -np.ones((Q, M))}, "must be >= 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_value_and_by_file(changed, message, tmp_path):
    given = arrays(**changed)
    with pytest.raises((DataError, ShapeError)) as caught:
        Recording(**given)
    assert message in str(caught.value)
    with pytest.raises(DataError) as told:
        read_recording(written(tmp_path, **given))
    assert "phase: recording.npz cannot be used" in str(told.value)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"A": np.ones((M, H, W))}, "neither y nor intensities (it holds A)"),
        ({}, "it holds nothing"),
        (arrays(intensities=np.ones((Q, M))), "both y and intensities"),
        (arrays(mask=np.ones(3)), "holds an array 'mask', which says nothing here"),
        (arrays(frames=np.array([None, {}], dtype=object)), "nothing is unpickled"),
        (arrays(frames=np.array(["a"])), "frames holds <U1, expected numbers"),
    ],
)
def test_files_with_other_arrays(given, message, tmp_path):
    with pytest.raises(DataError) as caught:
        read_recording(written(tmp_path, **given))
    assert "recording.npz" in str(caught.value)
    assert message in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_recording(tmp_path / "none.npz")
    with pytest.raises(DataError, match="is a folder"):
        read_recording(tmp_path)
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(DataError, match="one array without a name"):
        read_recording(tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("no arrays here")
    with pytest.raises(DataError, match="nothing is unpickled"):
        read_recording(tmp_path / "text.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.npz cannot be read"):
        read_recording(tmp_path / "empty.npz")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path, part):
    path = written(tmp_path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=r"recording\.npz cannot be read"):
        read_recording(path)


def test_damaged_numbers_are_noticed(tmp_path):
    path = written(tmp_path, **arrays())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"recording\.npz cannot be read"):
        read_recording(path)


def test_saving_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    given = Recording(**arrays())
    with pytest.raises(DataError, match=r"must end in \.npz"):
        given.save(tmp_path / "a.mat")
    with pytest.raises(RunError, match="could not be written"):
        given.save(tmp_path / "none" / "a.npz")
    given.save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "atomic_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(given, y=2 * given.y).save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
