"""Images brought to the size that a prior knows, and measurements and masks from files."""

import numpy as np
import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.inverse import fitted, named_operator, reconstruct
from lowdim.inverse.pictures import Picture

SHAPE = (1, 8, 8)


def picture(h, w):
    return Picture("photo", torch.linspace(0, 1, w).expand(1, h, w))


def test_what_fits_and_what_may_have_any_size_is_left_alone():
    given = [picture(8, 8)]
    assert fitted(given, SHAPE)[0] is given[0]
    assert fitted([picture(5, 9)], None)[0].image.shape == (1, 5, 9)


def test_another_size_is_refused_with_the_way_out():
    with pytest.raises(ShapeError, match=r"photo: 480 x 640 pixels.*only images of 8 x 8.*--fit resize"):
        fitted([picture(480, 640)], SHAPE)
    with pytest.raises(DataError, match="'stretch' is unknown"):
        fitted([picture(8, 8)], SHAPE, fit="stretch")


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (40, 16), (5, 7)])
def test_resize_keeps_the_sides_alike_and_covers(size):
    image = fitted([picture(*size)], SHAPE, fit="resize")[0].image
    assert image.shape == SHAPE
    # Gray rises from left to right by 1 / (w - 1) a pixel; the 8 new pixels are 7 / scale old ones apart.
    rise = float(image[0, 0, -1] - image[0, 0, 0])
    scale = 8 / min(size)
    assert rise == pytest.approx(7 / scale / (size[1] - 1), rel=0.1)


def test_crop_takes_the_middle_exactly():
    image = torch.arange(12 * 10.0).reshape(1, 12, 10)
    cut = fitted([Picture("photo", image)], SHAPE, fit="crop")[0].image
    assert torch.equal(cut, image[:, 2:10, 1:9])
    with pytest.raises(ShapeError, match="8 x 8 pixels cannot be cut out of 7 x 9"):
        fitted([picture(7, 9)], SHAPE, fit="crop")


def test_a_mask_from_a_file_hides_what_is_dark(tmp_path):
    seen = np.zeros((8, 8))
    seen[:, :3] = 1
    np.save(tmp_path / "mask.npy", seen)
    operator = named_operator("inpaint", image_shape=SHAPE, mask=str(tmp_path / "mask.npy"))
    assert torch.equal(operator.A(torch.ones(1, *SHAPE))[0, 0], torch.as_tensor(seen).float())
    with pytest.raises(ShapeError, match=r"mask\.npy has 8 x 8 pixels, and images have 9 x 8"):
        named_operator("inpaint", image_shape=(1, 9, 8), mask=str(tmp_path / "mask.npy"))


def test_a_kernel_from_a_file_is_divided_by_its_sum(tmp_path):
    np.save(tmp_path / "kernel.npy", np.eye(3))
    operator = named_operator("blur", image_shape=SHAPE, kernel=str(tmp_path / "kernel.npy"))
    point = torch.zeros(1, *SHAPE)
    point[..., 4, 4] = 1
    expected = torch.zeros(8, 8)
    expected[3, 3] = expected[4, 4] = expected[5, 5] = 1 / 3
    torch.testing.assert_close(operator.A(point)[0, 0], expected)
    np.save(tmp_path / "kernel.npy", np.zeros((3, 3)))
    with pytest.raises(DataError, match="sum > 0"):
        named_operator("blur", image_shape=SHAPE, kernel=str(tmp_path / "kernel.npy"))


def test_measurements_may_be_image_files(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b", "a"):
        np.save(tmp_path / f"{name}.npy", rng.random((8, 8)).astype(np.float32))
    options = {"operator": "denoise", "sigma": 0.1, "prior": "builtin-latent"}
    result = reconstruct(measurement=tmp_path, **options)
    assert result.names == ("a", "b")
    np.testing.assert_allclose(result.measurements[1][0], np.load(tmp_path / "b.npy"))
    one = reconstruct(measurement=np.load(tmp_path / "b.npy")[None, None], seed=1, **options)
    torch.testing.assert_close(one.images["dcdp"][0], result.images["dcdp"][1])


def test_measurements_of_another_size_are_refused_before_work():
    with pytest.raises(ShapeError, match=r"that of image-00000 is \(1, 8, 8\).*makes \(1, 4, 4\)"):
        reconstruct(
            measurement=torch.zeros(1, 1, 8, 8),
            operator={"name": "sr", "factor": 2},
            sigma=0.1,
            prior="builtin-latent",
        )


def test_a_device_that_is_not_there_is_told():
    with pytest.raises(DataError, match="device='nowhere' cannot be used"):
        reconstruct(
            torch.zeros(SHAPE), operator="denoise", sigma=0.1, prior="builtin-latent", device="nowhere"
        )
    auto = reconstruct(
        torch.zeros(SHAPE), operator="denoise", sigma=0.1, prior="builtin-latent", device="auto"
    )
    assert auto.images["dcdp"][0].device.type == "cpu"
