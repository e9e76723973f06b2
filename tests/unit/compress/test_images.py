import architectures
import numpy as np
import pytest
import torch

from lowdim.compress import compress
from lowdim.compress.images import image_batches, read_images
from lowdim.compress.inputs import source_digest
from lowdim.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")


def processor():
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture
def photos(tmp_path):
    """Twenty pictures of several sizes and kinds, one of them in a folder of its own, and a letter."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for i in range(20):
        pixels = numbers.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels if i % 3 else pixels[..., 0])
        picture.save(folder / ("more/last.PNG" if i == 19 else f"{i:02d}.{'png' if i % 2 else 'jpg'}"))
    (folder / "letter.txt").write_text("no image")
    return folder


def test_images_are_found_in_folders_within_and_become_batches(photos):
    images = read_images(photos)
    assert [len(images.files), images.files[-1].name, images.name] == [20, "last.PNG", "photos"]
    rows = image_batches(images, processor(), patch=8, batch_size=8)
    assert [tuple(row["pixel_values"].shape) for row in rows] == [(8, 3, 16, 16)] * 2 + [(4, 3, 16, 16)]
    # Gray pictures, too, get three channels, and the values are normalized.
    assert all(float(row["pixel_values"].abs().max()) <= 1 for row in rows)


@pytest.mark.parametrize(("tokens", "counts"), [(4, [1]), (5, [2]), (40, [8, 2]), (10**6, [8, 8, 4])])
def test_the_budget_counts_patches(photos, tokens, counts):
    rows = image_batches(read_images(photos), processor(), tokens=tokens, patch=8, batch_size=8)
    assert [len(row["pixel_values"]) for row in rows] == counts


def test_a_split_shares_nothing_and_depends_on_the_seed(photos):
    images = read_images(photos)
    kept, held = images.split(0.1, seed=0)
    assert sorted(kept.files + held.files) == images.files
    assert len(held.files) == 2
    assert any(images.split(0.1, seed=seed)[1].files != held.files for seed in range(1, 4))


def test_a_vision_model_is_compressed_from_a_folder(photos):
    result = compress(
        architectures.vit(), tokenizer=processor(), calibration=photos, sweeps=2, recover_steps=2, keep=0.6
    )
    report = result.report
    assert report["calibration"]["text"] == "18 images of photos"
    assert report["calibration"]["tokens"] == 18 * 4
    assert report["quality"]["text"] == "2 other images of photos"
    assert 0 <= report["quality"]["agreement"] <= 1
    assert all(0 < row["output_error"] < 1 for row in report["layers"])


def test_other_images_may_be_held_out(photos, tmp_path):
    model, batch = architectures.vit(), [{"pixel_values": torch.zeros(3, 3, 16, 16)}]
    for evaluation, told in ((photos / "more", "1 image of more"), (batch, "1 batches given in Python")):
        report = compress(
            model, tokenizer=processor(), calibration=str(photos), evaluation=evaluation, sweeps=1
        ).report
        assert report["quality"]["text"] == told
        assert report["calibration"]["images"] == 20


def test_the_digest_of_a_folder_knows_names_and_contents(photos):
    before = source_digest(photos)
    (photos / "letter.txt").write_text("another letter")
    assert source_digest(str(photos)) == before
    (photos / "01.png").rename(photos / "1.png")
    renamed = source_digest(photos)
    (photos / "1.png").write_bytes((photos / "03.png").read_bytes())
    assert len({before, renamed, source_digest(photos)}) == 3


def refused(match, **given):
    with pytest.raises(DataError, match=match):
        compress(given.pop("model", None) or architectures.vit(), sweeps=1, **given)


def test_what_cannot_be_used_is_refused(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(r"folder empty holds no image.*\.png", calibration=tmp_path / "empty", tokenizer=processor())
    refused(r"ViTForImageClassification came without an image processor", calibration=photos)
    refused(
        r"BertModel reads input_ids", model=architectures.bert(), calibration=photos, tokenizer=processor()
    )
    refused(r"none to calibrate with", evaluation=photos, tokenizer=processor())
    refused(r"is no folder of images", calibration=photos, evaluation="words.txt", tokenizer=processor())
    refused(r"more holds one image only", calibration=photos / "more", tokenizer=processor())
    (photos / "00.jpg").write_bytes(b"not a picture")
    refused(r"00\.jpg cannot be read as an image.*Remove the file", calibration=photos, tokenizer=processor())
    (photos / "00.jpg").unlink()
    processor_of_sizes = processor()
    processor_of_sizes.do_resize = False
    refused(r"could not make a batch of the images", calibration=photos, tokenizer=processor_of_sizes)
    with pytest.raises(DataError, match="there is no folder"):
        read_images(tmp_path / "nowhere")
