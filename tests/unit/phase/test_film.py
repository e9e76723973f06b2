"""Films are read from what people have, as gray values of at most 1."""

import sys

import numpy as np
import pytest

from lowdim.errors import DataError, MissingExtra, ShapeError
from lowdim.phase import film as film_module
from lowdim.phase import read_film

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: no image is read")

Q, H, W = 5, 6, 8


def levels(dtype=np.uint8, top=200):
    return (np.arange(Q * H * W).reshape(Q, H, W) % top).astype(dtype)


def save_stack(path, stack, **options):
    images = [Image.fromarray(frame) for frame in stack]
    images[0].save(path, save_all=True, append_images=images[1:], **options)


def test_arrays_are_scaled_by_their_type(tmp_path):
    path = tmp_path / "a.npy"
    for stack, expected in (
        (levels(), levels() / 255),
        (levels(np.uint16), levels() / 65535),
        (levels() > 100, (levels() > 100).astype(float)),
        (levels() / 1000, levels() / 1000),
        (levels(np.int64) - 50, (levels() - 50.0) / 149),
        (-3.0 * levels(), levels() / -199),
        (0.5 - levels() / 255, 0.5 - levels() / 255),
        (np.zeros((Q, H, W)), np.zeros((Q, H, W))),
    ):
        np.save(path, stack)
        film = read_film(path)
        assert film.dtype == np.float64
        np.testing.assert_allclose(film, expected, atol=1e-15)


def test_colors_become_gray_and_transparency_is_left_aside(tmp_path):
    gray = levels()
    color = np.stack([gray, gray, gray, 0 * gray], -1)
    np.savez(tmp_path / "a.npz", film=color)
    np.testing.assert_allclose(read_film(tmp_path / "a.npz"), gray / 255, atol=1e-12)
    red = np.zeros((Q, H, W, 3), dtype=np.uint8)
    red[..., 0] = 255
    np.save(tmp_path / "a.npy", red)
    np.testing.assert_allclose(read_film(tmp_path / "a.npy"), 0.299)


def test_complex_films_stay_as_they_are(tmp_path):
    film = levels() * np.exp(0.1j * levels())
    np.save(tmp_path / "a.npy", film)
    np.testing.assert_array_equal(read_film(tmp_path / "a.npy"), film)
    small = read_film(tmp_path / "a.npy", size=(3, 4))
    assert small.shape == (Q, 3, 4)
    assert np.iscomplexobj(small)


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
def test_files_with_several_frames(tmp_path, name):
    save_stack(tmp_path / name, levels())
    np.testing.assert_allclose(read_film(tmp_path / name), levels() / 255, atol=1e-12)


def test_tiffs_of_16_bit_keep_their_range(tmp_path):
    save_stack(tmp_path / "a.tif", 200 * levels(np.uint16))
    np.testing.assert_allclose(read_film(tmp_path / "a.tif"), 200.0 * levels() / 65535, atol=1e-12)


def test_folders_are_read_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        Image.fromarray(np.full((H, W), number, dtype=np.uint8)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    film = read_film(tmp_path)
    np.testing.assert_allclose(255 * film[:, 0, 0], [1, 9, 10])


def test_frames_are_picked_evenly_and_resized_by_averaging(tmp_path):
    stack = np.zeros((9, 8, 8), dtype=np.uint8)
    stack[:, ::2, ::2] = 200
    stack[4] += 50
    np.save(tmp_path / "a.npy", stack)
    film = read_film(tmp_path / "a.npy", frames=3, size=2)
    assert film.shape == (3, 2, 2)
    # A quarter of the pixels is bright; skipping pixels would give 0 or all of it.
    np.testing.assert_allclose(255 * film[0], 50, atol=8)
    np.testing.assert_allclose(film[1] - film[0], 50 / 255, atol=1e-6)
    assert read_film(tmp_path / "a.npy", size=(8, 8)).shape == (9, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 1}, "frames=1 must be a whole number of 2 or more"),
        ({"frames": 6}, "holds 5 frames, fewer than the 6 asked for"),
        ({"size": (0, 4)}, "must be (height, width) in pixels"),
        ({"size": (1, 2, 3)}, "must be (height, width) in pixels"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    np.save(tmp_path / "a.npy", levels())
    with pytest.raises(DataError) as caught:
        read_film(tmp_path / "a.npy", **options)
    assert message in str(caught.value)


def test_what_is_no_film_is_refused(tmp_path):
    def refused(name, error, message):
        with pytest.raises(error) as caught:
            read_film(tmp_path / name)
        assert message in str(caught.value)

    refused("none.npy", DataError, "there is no file")
    (tmp_path / "a.doc").write_text("x")
    refused("a.doc", DataError, "has no known format")
    for name in ("b.npy", "b.npz", "b.png", "b.gif"):
        (tmp_path / name).write_text("x")
        refused(name, DataError, "cannot be read")
    np.save(tmp_path / "c.npy", np.ones((3, 4)))
    refused("c.npy", ShapeError, "expected (frames, height, width)")
    np.save(tmp_path / "c.npy", np.ones((3, 4, 4, 2)))
    refused("c.npy", ShapeError, "expected (frames, height, width)")
    np.save(tmp_path / "c.npy", np.full((3, 4, 4), "a"))
    refused("c.npy", DataError, "expected numbers")
    np.save(tmp_path / "c.npy", np.full((3, 4, 4), np.nan))
    refused("c.npy", DataError, "NaN or infinite")
    np.savez(tmp_path / "c.npz", a=np.ones((3, 4, 4)), b=np.ones(3))
    refused("c.npz", DataError, "holds 2 arrays (a, b), expected one")
    np.save(tmp_path / "c.npy", np.ones((1, 4, 4)))
    refused("c.npy", ShapeError, "holds 1 image, expected a sequence")
    (tmp_path / "empty").mkdir()
    refused("empty", ShapeError, "holds no image")
    for name, side in (("0", 4), ("1", 5)):
        Image.fromarray(np.zeros((side, 4), dtype=np.uint8)).save(tmp_path / "empty" / f"{name}.png")
    refused("empty", ShapeError, "1.png has 4 x 5 pixels, the first image has 4 x 4")


def test_videos_are_read_with_imageio(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: no video is read")
    from imageio import v3

    path = tmp_path / "a.mp4"
    stack = np.repeat(np.linspace(20, 220, 8).astype(np.uint8), 32 * 32 * 3).reshape(8, 32, 32, 3)
    v3.imwrite(path, stack, fps=8)
    film = read_film(path)
    assert film.shape[1:] == (32, 32)
    np.testing.assert_allclose(film.mean((1, 2)), stack[: len(film)].mean((1, 2, 3)) / 255, atol=0.03)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"a\.mp4 cannot be read as a video"):
        read_film(path)


@pytest.mark.parametrize("lacking", ["imageio", "imageio-ffmpeg"])
def test_without_imageio_or_its_decoder_the_extra_is_named(tmp_path, monkeypatch, lacking):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    there = {"imageio", "av", "imageio_ffmpeg"} if lacking == "imageio" else {"av", "imageio_ffmpeg"}
    monkeypatch.setattr(film_module, "find_spec", lambda name: None if name in there else object())
    with pytest.raises(MissingExtra, match=rf"'{lacking}' to read videos.*lowdim\[images\]"):
        read_film(tmp_path / "a.mp4")


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    save_stack(tmp_path / "a.gif", levels())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match="pillow"):
        read_film(tmp_path / "a.gif")
    np.save(tmp_path / "a.npy", levels())
    assert read_film(tmp_path / "a.npy").shape == (Q, H, W)
    with pytest.raises(MissingExtra, match="resize frames"):
        read_film(tmp_path / "a.npy", size=3)
