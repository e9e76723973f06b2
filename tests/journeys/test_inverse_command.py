"""`lowdim inverse` as a user runs it: image files in, images, numbers and a page out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lowdim.cli
from lowdim.inverse import GMMPrior, InverseResult, named_operator
from lowdim.inverse.digits import digits
from lowdim.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore")

TIMED = ("seconds", "created", "command", "output")
LATENT = ("--prior", "builtin-latent")


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["inverse", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def shown(result) -> str:
    return " ".join(result.stdout.split())


def lasting(report: dict) -> dict:
    """What a report says but for times."""
    kept = {key: value for key, value in report.items() if key not in TIMED}
    for key in ("rows", "solvers"):
        kept[key] = [{name: v for name, v in one.items() if name not in TIMED} for one in kept[key]]
    return kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four handwritten digits as image files of four kinds."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed: no image file is read")
    made = tmp_path_factory.mktemp("digits")
    levels = (255 * (digits("test")[:4, 0] + 1) / 2).round().to(torch.uint8).numpy()
    pillow.fromarray(levels[0]).save(made / "a.png")
    pillow.fromarray(np.stack([levels[1]] * 3, -1)).save(made / "b.jpg", quality=95)
    pillow.fromarray(levels[2]).save(made / "c.tif")
    np.save(made / "d.npy", levels[3] / 255)
    return made


@pytest.fixture(scope="module")
def words(folder) -> tuple[object, ...]:
    return ("reconstruct", folder, "--operator", "sr", "--scale", 2, "--sigma", 0.02, *LATENT)


@pytest.fixture(scope="module")
def done(words, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("done") / "out"
    return out, shown(call(*words, "--solver", "dcdp", "--solver", "dps:steps=10", "-o", out))


def test_it_writes_images_measurements_report_and_page(done):
    out, said = done
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("images", "measurements", "truth", "report.json", "report.html", "manifest.json", ".lock")
    }
    assert {path.name for path in (out / "images").iterdir()} == {"dcdp", "dps-steps=10"}
    assert {path.name for path in (out / "images/dcdp").iterdir()} == {
        f"{name}.{kind}" for name in "abcd" for kind in ("npy", "png")
    }
    result = InverseResult.load(out)
    assert result.images["dcdp"][0].shape == (1, 8, 8)
    assert result.measurements[0].shape == (1, 4, 4)
    report = result.report
    assert [one["name"] for one in report["solvers"]] == ["dcdp", "dps-steps=10"]
    assert [one["network_calls"] for one in report["solvers"]] == [10, 10]
    assert f"{report['solvers'][0]['psnr']:.2f}" in said
    assert report["sentence"] in said
    assert "Means over 4 images" in said
    assert "Report:" in said
    page = (out / "report.html").read_text()
    assert page.count('<figure class="slider">') == 4


def test_the_measurement_is_what_the_operator_makes_of_the_truth(done):
    result = InverseResult.load(done[0])
    operator = named_operator("sr", image_shape=(1, 8, 8), factor=2)
    apart = torch.stack(result.measurements) - operator.A(torch.stack(result.truth))
    assert 0.015 < float(apart.std()) < 0.025
    again = operator.A(torch.stack(result.images["dcdp"])) - torch.stack(result.measurements)
    mean = np.mean([row["residual"] for row in result.report["rows"] if row["solver"] == "dcdp"])
    assert float((again**2).mean()) / 0.02**2 == pytest.approx(mean, rel=1e-3)


def test_one_image_and_no_folder(folder, tmp_path):
    said = shown(call("reconstruct", folder / "b.jpg", "--operator", "denoise", "--sigma", 0.2, *LATENT))
    assert "One image was reconstructed" in said
    assert "Nothing was written" in said
    report = json.loads(
        call("reconstruct", folder / "b.jpg", "--operator", "denoise", *LATENT, "--json").stdout
    )
    assert report["names"] == ["b"]
    assert report["sigma"] == 0.01
    assert report["simulated"] is True


def test_the_builtin_prior_reconstructs_digits(folder, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed: no network of digits")
    out = tmp_path / "out"
    call("reconstruct", folder, "--operator", "inpaint", "--missing", 0.3, "-o", out, "--min-psnr", 18)
    report = json.loads((out / "report.json").read_text())
    assert report["gate"] == {"min_psnr": 18.0, "passed": True}
    assert report["prior"] == "builtin"
    assert (report["solvers"][0]["name"], report["solvers"][0]["network_calls"]) == ("dcdp-without-noise", 10)


def test_a_given_measurement_needs_no_truth(done, tmp_path):
    y = torch.stack(InverseResult.load(done[0]).measurements)
    np.save(tmp_path / "y.npy", y.numpy())
    line = ("reconstruct", "--measurement", tmp_path / "y.npy", "--operator", "sr", "--scale", 2, *LATENT)
    refused = told(call(*line, code=2))
    assert "noise in given measurements is unknown. Add --sigma" in refused
    out = tmp_path / "out"
    said = shown(call(*line, "--sigma", 0.02, "-o", out))
    assert "the measurements are met by dcdp to" in said
    blind, known = InverseResult.load(out), InverseResult.load(done[0])
    assert blind.truth is None
    assert blind.report["simulated"] is False
    torch.testing.assert_close(blind.images["dcdp"], known.images["dcdp"])
    html = (out / "report.html").read_text()
    assert "Where it is wrong" not in html
    assert "Data consistency" in html


def test_measurements_are_images_masks_are_files(folder, tmp_path):
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, ::2] = 255
    from PIL import Image

    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "seen").mkdir()
    Image.fromarray(np.asarray(Image.open(folder / "a.png")) * (mask > 0)).save(tmp_path / "seen/half.png")
    out = tmp_path / "out"
    line = ("reconstruct", "--measurement", tmp_path / "seen", "--operator", "inpaint", *LATENT, "-o", out)
    call(*line, "--mask", tmp_path / "mask.png", "--sigma", 0.01)
    result = InverseResult.load(out)
    assert result.names == ("half",)
    apart = (result.images["dcdp"][0] - result.measurements[0])[0][torch.as_tensor(mask) > 0]
    assert float((apart**2).mean() ** 0.5) < 0.08
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"measurements", "mask"}


def test_compare_shows_what_solvers_reach_and_take(folder, tmp_path):
    out = tmp_path / "out"
    line = ("compare", folder, "--operator", "inpaint", "--box", 0.4, *LATENT, "--solver", "dcdp")
    line = (*line, "--solver", "resample:steps=12", "--solver", "dps:steps=8", "-o", out)
    said = shown(call(*line))
    for part in (
        "DCDP",
        "ReSample, steps 12",
        "DPS, steps 8",
        "PSNR",
        "SSIM",
        "Network",
        "Decoder",
    ):
        assert part in said
    assert "LPIPS is left out: images have less than the 32 pixels a side" in said
    report = json.loads((out / "report.json").read_text())
    assert len(report["rows"]) == 12
    assert "Quality and effort" in (out / "report.html").read_text()
    assert len({one["seconds"] for one in report["solvers"]}) == 3


def test_compare_shows_lpips_where_it_is_available(tmp_path, monkeypatch):
    """With a stand-in for the package, whose network would be downloaded: the mean absolute difference."""
    truth = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "two.npy", truth.numpy())

    class Distance(torch.nn.Module):
        def __init__(self, *, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
            assert one.shape == two.shape == (1, 3, 32, 32)
            assert float(one.min()) >= -1
            assert float(one.max()) <= 1
            return (one - two).abs().mean() / 2

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Distance))
    from lowdim.inverse import CallablePrior, linear_alphas_cumprod, reconstruct
    from lowdim.inverse.lpips import add_lpips

    gray = CallablePrior(lambda x, t: x, linear_alphas_cumprod())
    result = reconstruct(
        truth, operator="denoise", sigma=0.1, prior=gray, solvers={"dcdp": {"steps": 2}}, seed=1
    )
    report = add_lpips(result)
    expected = [
        float((image.clamp(0, 1) - one).abs().mean())
        for image, one in zip(result.images["dcdp"], truth, strict=True)
    ]
    assert [row["lpips"] for row in report["rows"]] == pytest.approx(expected, rel=1e-4)
    assert report["solvers"][0]["lpips"] == pytest.approx(np.mean(expected), rel=1e-4)
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert any("package lpips is not installed" in note for note in add_lpips(result)["notes"])


def test_an_image_that_does_not_fit_the_prior_is_told_the_ways_out(tmp_path):
    np.save(tmp_path / "photo.npy", np.random.default_rng(0).random((20, 30)))
    line = ("reconstruct", tmp_path / "photo.npy", "--operator", "denoise", *LATENT)
    refused = told(call(*line, "-o", tmp_path / "out", code=2))
    assert "photo: 20 x 30 pixels, but the prior knows only images of 8 x 8" in refused
    assert "--fit resize" in refused
    assert "--fit crop" in refused
    assert not (tmp_path / "out").exists()
    for fit in ("resize", "crop"):
        assert json.loads(call(*line, "--fit", fit, "--json").stdout)["shapes"] == [[1, 8, 8]]


def test_a_saved_mixture_is_a_prior(folder, tmp_path):
    GMMPrior.fit(digits("train")[:300], components=2).save(tmp_path / "mixture")
    line = ("reconstruct", folder, "--operator", "blur", "--blur-std", 0.7, "--prior", tmp_path / "mixture")
    report = json.loads(call(*line, "--json").stdout)
    assert report["prior"] == "mixture"
    assert report["operator"] == {"name": "blur", "std": 0.7}
    quiet = json.loads(call(*line, "--json", "--solver", "dcdp-without-noise:steps=6").stdout)["solvers"][0]
    assert (quiet["network_calls"], quiet["settings"]["noise"]) == (6, 0)
    refused = told(call(*line, "--solver", "resample", code=2))
    assert "resample needs a latent prior" in refused


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--operator", "fog"), "Invalid value for '--operator'"),
        (("--blur-std", "1"), "--blur-std 1.0 is an option of blur and saturate, and the operator is sr"),
        (("--operator", "inpaint", "--box", "0.5", "--missing", "0.5"), "both say what is hidden"),
        (("--operator", "inpaint", "--missing", "1.5"), "missing=1.5 must be in [0, 1)"),
        (("--scale", "3"), "cannot be cut into blocks of 3"),
        (("--sigma", "-1"), "sigma=-1.0 must be a number >= 0"),
        (("--solver", "magic"), "'magic' is unknown. Use one of dcdp, dcdp-without-noise, resample, dps"),
        (("--solver", "dps:steps"), "--solver dps:steps: expected NAME:OPTION=VALUE"),
        (("--solver", "dps:hue=blue"), "does not take these options"),
        (("--solver", "dps", "--solver", "dps"), "--solver dps is there twice"),
        (("--prior", "nowhere"), "nowhere is no folder"),
        (("--batch", "0"), "batch=0 must be a whole number of 1 or more"),
        (("--device", "abacus"), "device='abacus' cannot be used"),
        (("--operator", "inpaint", "--mask", "nowhere.png"), "nowhere.png does not exist"),
        (("--resume", "--restart"), "Give only one"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(folder, tmp_path, options, text):
    out = tmp_path / "out"
    assert text in told(call("reconstruct", folder, *LATENT, "-o", out, *options, code=2))
    assert not out.exists()


def test_files_that_cannot_be_used(folder, tmp_path):
    def refused(*words: object) -> str:
        return told(call("reconstruct", *words, *LATENT, code=2))

    assert "there is nothing to reconstruct" in refused()
    assert "does not exist" in refused(tmp_path / "none.png")
    assert "holds no image" in refused(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not an image")
    assert "cannot be read as an image" in refused(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object))
    assert "cannot be read as NPY" in refused(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.full((8, 8), np.nan))
    assert "real, finite numbers" in refused(tmp_path / "c.npy")
    np.save(tmp_path / "y.npy", np.zeros((3, 1, 4, 4)))
    assert "3 for 4 images" in refused(folder, "--measurement", tmp_path / "y.npy", "--sigma", 0)
    assert "makes (1, 2, 2)" in refused("--measurement", tmp_path / "y.npy", "--sigma", 0)
    assert "--min-psnr needs the true images" in refused("--measurement", tmp_path / "y.npy", "--min-psnr", 9)
    assert "need the output folder" in refused(folder, "--resume")


def test_a_gate_that_is_not_reached_ends_with_1(folder, words, tmp_path):
    out = tmp_path / "out"
    assert "No solver reaches 60 dB." in shown(call(*words, "--min-psnr", 60, "-o", out, code=1))
    assert json.loads((out / "report.json").read_text())["gate"] == {"min_psnr": 60.0, "passed": False}
    assert "<b>Failed</b>" in (out / "report.html").read_text()


def test_it_is_not_repeated_but_can_be_resumed_or_restarted(words, tmp_path):
    out = tmp_path / "out"
    call(*words, "-o", out)
    again = told(call(*words, "-o", out, code=2))
    assert "already holds a finished run" in again
    assert "sigma was 0.02 and is now 0.05" in told(
        call(*words, "--sigma", 0.05, "-o", out, "--resume", code=2)
    )
    image = out / "images/dcdp/a.npy"
    before = image.stat().st_mtime_ns
    first = lasting(json.loads((out / "report.json").read_text()))
    call(*words, "-o", out, "--resume")
    assert image.stat().st_mtime_ns == before
    call(*words, "-o", out, "--restart")
    assert image.stat().st_mtime_ns > before
    assert lasting(json.loads((out / "report.json").read_text())) == first
    with Run.open(tmp_path / "used", command="inverse reconstruct", arguments={}, seed=0):
        assert "is in use by another lowdim process" in told(call(*words, "-o", tmp_path / "used", code=2))


def test_a_run_that_was_killed_goes_on_without_redoing_images(words, tmp_path):
    line = [*words, "--batch", 1]
    call(*line, "-o", tmp_path / "whole")
    out = tmp_path / "out"
    # It waits before the third image, where it is killed.
    code = (
        "import sys, time\nfrom lowdim.inverse.job import Job\nreal = Job._reconstruct\n"
        "def slow(job, name, chunk, done, total):\n"
        "    if done == 2: time.sleep(600)\n"
        "    real(job, name, chunk, done, total)\n"
        "Job._reconstruct = slow\nfrom lowdim.cli import main\nmain(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "inverse", *map(str, line), "-o", str(out)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ},
    )
    kept = out / ".work" / "dcdp-000001.safetensors"
    deadline = time.monotonic() + 120
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert kept.exists()
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (out / "report.json").exists()
    before = kept.stat().st_mtime_ns
    assert "already holds an unfinished run" in told(call(*line, "-o", out, code=2))
    call(*line, "-o", out, "--resume")
    assert not kept.exists() or kept.stat().st_mtime_ns == before
    first, second = (InverseResult.load(path) for path in (tmp_path / "whole", out))
    assert lasting(first.report) == lasting(second.report)
    assert all(map(torch.equal, first.images["dcdp"], second.images["dcdp"]))


@pytest.mark.parametrize("verb", ["reconstruct", "compare"])
def test_help_tells_every_option(verb):
    said = call(verb, "--help").stdout
    for option in (
        *("--operator", "--scale", "--blur-std", "--kernel", "--missing", "--box", "--mask", "--angles"),
        *("--gain", "--sigma", "--fit", "--prior", "--solver", "--batch", "--seed", "--device", "--output"),
        *("--resume", "--restart", "--json"),
    ):
        assert option in said
    if verb == "reconstruct":
        assert "--measurement" in said
        assert "--min-psnr" in said
