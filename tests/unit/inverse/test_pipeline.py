"""Many images by several solvers: run directories, resuming, files."""

import json
import os

import numpy as np
import pytest
import torch

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.inverse import (
    CallablePrior,
    GMMPrior,
    InverseResult,
    Reconstruction,
    linear_alphas_cumprod,
    psnr,
    reconstruct,
    ssim,
)
from lowdim.inverse.choose import chosen_prior, chosen_solvers
from lowdim.inverse.named import OPERATORS, named_operator
from lowdim.inverse.pictures import read_pictures


@pytest.fixture(scope="module")
def images():
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prior(images):
    return GMMPrior.fit(2 * images - 1, components=2, regularization=1e-1)


def job(prior, **more):
    sr = {"name": "sr", "factor": 2}
    return {"operator": sr, "sigma": 0.02, "prior": prior, "solvers": "dcdp", "batch": 2, **more}


class Counted:
    """A solver that counts the images it is given, and may fail at one."""

    def __init__(self, solver, fail_at=None):
        self.solver, self.fail_at, self.images = solver, fail_at, 0
        self.settings = solver.settings

    def __call__(self, y, *args, **options):
        if self.fail_at is not None and self.images >= self.fail_at:
            raise KeyboardInterrupt
        self.images += len(y)
        return self.solver(y, *args, **options)


def test_several_solvers_on_several_images(images, prior):
    told = []
    result = reconstruct(
        images[:5],
        progress=lambda *step: told.append(step),
        **job(prior, solvers={"dcdp": {"steps": 5}, "few": {"solver": "dps", "steps": 6}}),
    )
    table = result.table()
    assert list(table["solver"]) == ["dcdp"] * 5 + ["few"] * 5
    assert set(table["network_calls"]) == {5, 6}
    assert [len(result.images[name]) for name in ("dcdp", "few")] == [5, 5]
    direct = psnr(torch.stack(result.images["dcdp"]), images[:5], value_range=(0, 1))
    torch.testing.assert_close(torch.tensor(table["psnr"][:5].tolist()), direct)
    assert result.report["solvers"][1]["settings"]["steps"] == 6
    assert told[-1][:3] == ("reconstruct", 10, 10)
    assert "comes nearest" in result.summary()
    json.dumps(result.report, allow_nan=False)


def test_baselines_of_deepinv_stand_beside_ours(images, prior):
    pytest.importorskip("deepinv")
    solvers = {"pinv": {}, "tv": {"weight": 0.02, "steps": 5}, "diffpir": {"steps": 5}}
    result = reconstruct(images[:2], **job(prior, solvers=solvers))
    assert list(result.images) == ["pinv", "tv", "diffpir"]
    y, pooled = torch.stack(result.measurements), torch.nn.functional.avg_pool2d
    torch.testing.assert_close(pooled(torch.stack(result.images["pinv"]), 2), y, atol=1e-3, rtol=0)


def test_results_depend_neither_on_the_batch_nor_on_the_folder(tmp_path, images, prior):
    one = reconstruct(images[:5], output=tmp_path / "run", **job(prior, batch=1))
    all_ = reconstruct(images[:5], **job(prior, batch=5))
    torch.testing.assert_close(torch.stack(one.images["dcdp"]), torch.stack(all_.images["dcdp"]))
    again = InverseResult.load(tmp_path / "run")
    assert all(map(torch.equal, again.images["dcdp"], one.images["dcdp"]))
    assert all(map(torch.equal, again.measurements, one.measurements))
    assert all(map(torch.equal, again.truth, list(images[:5])))
    assert again.report == json.loads(json.dumps(one.report))
    files = sorted(p.name for p in (tmp_path / "run" / "images" / "dcdp").iterdir())
    assert files[:2] == ["image-00000.npy", "image-00000.png"]


def test_a_killed_run_goes_on_where_it_was(tmp_path, images, prior):
    whole = reconstruct(images[:7], **job(prior))
    first = Counted(chosen_solvers("dcdp", prior)["dcdp"], fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(images[:7], output=tmp_path / "run", **job(prior, solvers={"dcdp": first}))
    second = Counted(chosen_solvers("dcdp", prior)["dcdp"])
    with pytest.raises(RunError, match="--resume"):
        reconstruct(images[:7], output=tmp_path / "run", **job(prior, solvers={"dcdp": second}))
    result = reconstruct(
        images[:7], output=tmp_path / "run", resume=True, **job(prior, solvers={"dcdp": second})
    )
    assert (first.images, second.images) == (4, 3)
    assert all(map(torch.equal, result.images["dcdp"], whole.images["dcdp"]))
    third = Counted(chosen_solvers("dcdp", prior)["dcdp"])
    reconstruct(images[:7], output=tmp_path / "run", resume=True, **job(prior, solvers={"dcdp": third}))
    assert third.images == 0


def test_200_images_are_done_once_however_often_the_run_is_killed(tmp_path, monkeypatch):
    """Killed at random places, between two batches: no image is given to the solver a second time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of them, and no power fails here

    def same(y, operator, *, sigma, seed, callback):
        nonlocal given
        if given >= end:
            raise KeyboardInterrupt
        given += len(y)
        return Reconstruction(y.clone(), torch.ones(len(y)), 0, torch.zeros(len(y)), 0.0)

    x = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    prior = CallablePrior(lambda x, t: x, linear_alphas_cumprod())
    work = {"operator": "denoise", "sigma": 0, "prior": prior, "solvers": {"same": same}, "batch": 8}
    places = torch.randint(1, 200, (2,), generator=torch.Generator().manual_seed(2)).sort().values.tolist()
    given, end = 0, 0
    for kill, place in enumerate(places):
        end = place
        with pytest.raises(KeyboardInterrupt):
            reconstruct(x, output=tmp_path / "run", resume=kill > 0, **work)
    end = 1000
    result = reconstruct(x, output=tmp_path / "run", resume=True, **work)
    assert given == 200
    assert all(map(torch.equal, result.images["same"], x))


def test_other_settings_do_not_resume(tmp_path, images, prior):
    reconstruct(images[:2], output=tmp_path / "run", **job(prior))
    with pytest.raises(RunError, match="sigma was"):
        reconstruct(images[:2], output=tmp_path / "run", resume=True, **{**job(prior), "sigma": 0.1})
    with pytest.raises(RunError, match="input images has changed"):
        reconstruct(images[1:3], output=tmp_path / "run", resume=True, **job(prior))


def test_given_measurements_need_no_truth(tmp_path, images, prior):
    y = named_operator("sr", image_shape=(1, 8, 8), factor=2).measure(images[:3], sigma=0.02, seed=0)
    np.save(tmp_path / "y.npy", y.numpy())
    result = reconstruct(measurement=tmp_path / "y.npy", **job(prior))
    assert result.truth is None
    assert result.table()["psnr"].isna().all()
    assert "sigma^2" in result.summary()
    known = reconstruct(images[:3], measurement=y, **job(prior))
    assert all(map(torch.equal, known.images["dcdp"], result.images["dcdp"]))
    assert known.table()["psnr"].notna().all()
    one = reconstruct(images[:1], measurement=y[:1], **job(prior))
    torch.testing.assert_close(one.images["dcdp"][0], result.images["dcdp"][0])


def test_files_are_read_and_written(tmp_path, images, prior):
    image_module = pytest.importorskip("PIL.Image")
    levels = (255 * images[0, 0]).round().to(torch.uint8).numpy()
    folder = tmp_path / "in"
    folder.mkdir()
    image_module.fromarray(levels).save(folder / "gray.png")
    image_module.fromarray(np.stack([levels] * 3, -1)).save(folder / "color.tiff")
    image_module.fromarray(levels.astype(np.uint16) * 257).save(folder / "deep.png")
    np.save(folder / "exact.npy", images[0, 0].numpy())
    (folder / "notes.txt").write_text("no image")
    found = read_pictures(folder, channels=1)
    assert [p.name for p in found] == ["color", "deep", "exact", "gray"]
    for picture in found:
        torch.testing.assert_close(picture.image, images[0], atol=1 / 255, rtol=0)
    result = reconstruct(folder, output=tmp_path / "out", **job(prior))
    assert result.names == ("color", "deep", "exact", "gray")
    written = np.asarray(image_module.open(tmp_path / "out" / "images" / "dcdp" / "gray.png"))
    assert np.abs(written / 255 - result.images["dcdp"][3][0].clamp(0, 1).numpy()).max() < 0.003


def test_images_of_several_sizes_go_through_alone(tmp_path):
    def same(y, operator, *, sigma, seed, callback):
        return Reconstruction(y, torch.ones(len(y)), 0, torch.zeros(len(y), dtype=torch.int64), 0.0)

    prior = CallablePrior(lambda x, t: x, linear_alphas_cumprod())
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    np.save(tmp_path / "b.npy", np.ones((6, 8)))
    result = reconstruct(tmp_path, operator="denoise", sigma=0, prior=prior, solvers={"same": same})
    assert result.report["shapes"] == [[1, 4, 4], [1, 6, 8]]
    assert result.table()["psnr"].min() > 100


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"ct"}))
def test_named_operators_take_images_in_0_1(name):
    operator = named_operator(name, image_shape=(1, 8, 8))
    assert operator.value_range == (0, 1)
    assert torch.isfinite(operator.A(torch.rand(2, 1, 8, 8))).all()


def test_a_box_is_hidden_in_the_middle():
    mask = named_operator("inpaint", image_shape=(1, 8, 8), box=0.5).A(torch.ones(1, 1, 8, 8))[0, 0]
    assert float(mask.sum()) == 48
    assert float(mask[2:6, 2:6].sum()) == 0


def test_metrics_are_those_of_scikit_image(images):
    metrics = pytest.importorskip("skimage.metrics")
    x = images[:1]
    noisy = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    ours = float(ssim(noisy, x, value_range=(0, 1))), float(psnr(noisy, x, value_range=(0, 1)))
    pair = noisy[0, 0].numpy(), x[0, 0].numpy()
    whole = metrics.structural_similarity(*pair, data_range=1.0, win_size=7)
    assert ours[0] == pytest.approx(whole, abs=1e-5)
    assert ours[1] == pytest.approx(metrics.peak_signal_noise_ratio(*pair, data_range=1.0), abs=1e-4)


def test_bad_input_is_refused(tmp_path, images, prior):
    with pytest.raises(DataError, match="no image"):
        reconstruct(**job(prior))
    with pytest.raises(DataError, match="'sharpen' is unknown"):
        reconstruct(images[:1], operator="sharpen", sigma=0.1, prior=prior)
    with pytest.raises(DataError, match="angle is no option"):
        reconstruct(images[:1], operator={"name": "sr", "angle": 3}, sigma=0.1, prior=prior)
    with pytest.raises(DataError, match="noise in the measurements is unknown"):
        reconstruct(images[:1], operator="sr", prior=prior)
    with pytest.raises(DataError, match="resample needs a latent prior"):
        reconstruct(images[:1], **job(prior, solvers="resample"))
    with pytest.raises(DataError, match="'magic' is unknown"):
        reconstruct(images[:1], **job(prior, solvers="magic"))
    with pytest.raises(DataError, match="does not take these options"):
        reconstruct(images[:1], **job(prior, solvers={"dcdp": {"hue": 1}}))
    with pytest.raises(ShapeError, match="2 for 3 images"):
        reconstruct(images[:3], measurement=torch.zeros(2, 1, 4, 4), **job(prior))
    with pytest.raises(RunError, match="Add output"):
        reconstruct(images[:1], resume=True, **job(prior))
    with pytest.raises(DataError, match="is no folder"):
        chosen_prior(tmp_path / "none")
    with pytest.raises(DataError, match="does not exist"):
        read_pictures(tmp_path / "none.png")
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_pictures(tmp_path / "bad.png")
    with pytest.raises(DataError, match="finite"):
        read_pictures(images[:1] * float("inf"))


def test_who_names_no_solver_gets_the_one_of_least_error(images, prior):
    result = reconstruct(images[:1], operator="denoise", sigma=0.1, prior=prior)
    assert list(result.images) == ["dcdp-without-noise"]
    assert result.report["solvers"][0]["network_calls"] == 10
    assert list(chosen_solvers(["auto", "dps"], prior)) == ["dcdp-without-noise", "dps"]
    assert list(chosen_solvers("auto", chosen_prior("builtin-latent"))) == ["dcdp"]
    with pytest.raises(DataError, match="dcdp-without-noise here, which is there twice"):
        chosen_solvers(["auto", "dcdp-without-noise"], prior)
