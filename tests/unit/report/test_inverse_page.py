"""The page of `lowdim inverse`: what the report says is shown, and parts may be missing."""

import base64
import copy
import html as entities
import json
import re
import zlib

import numpy as np
import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.inverse import GMMPrior, reconstruct
from lowdim.report import inverse_figures as figures
from lowdim.report import inverse_page
from lowdim.report.png import png_uri

MANY = 8


@pytest.fixture(scope="module")
def prior():
    return GMMPrior.fit(
        2 * torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 1, components=2
    )


@pytest.fixture(scope="module")
def truth():
    return torch.rand(MANY, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def result(prior, truth):
    return reconstruct(
        truth,
        operator={"name": "sr", "factor": 2},
        sigma=0.05,
        prior=prior,
        solvers={"dcdp": {}, "dps-steps=5": {"solver": "dps", "steps": 5}},
    )


@pytest.fixture(scope="module")
def whole(result):
    extra = {"source": "digits", "command": "lowdim inverse compare digits", "output": "out"}
    return json.loads(json.dumps({**result.report, **extra}))


@pytest.fixture
def report(whole):
    return copy.deepcopy(whole)


def text_of(page):
    html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page.html(), flags=re.S)
    plain = entities.unescape(re.sub(r"<[^>]+>", "\n", html))
    return re.sub(r"\s+", " ", plain.replace("\N{NO-BREAK SPACE}", " "))


def pixels(uri):
    """Decode what `png_uri` wrote, with Pillow or by hand where that is not installed."""
    import io

    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: no PNG is decoded")
    return np.asarray(image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_the_whole_report_shows_every_part(report, result):
    report["notes"] = ["Something to know."]
    text = text_of(inverse_page(report, result=result))
    for part in ("Before and after", "Solvers", "Where it is wrong", "Data consistency", "Images", "Use it"):
        assert part in text
    assert report["sentence"] in text
    assert "seen through small images (factor 2) · noise 0.05" in text
    assert "lowdim inverse compare digits" in text
    assert "InverseResult.load('out')" in text
    assert "Something to know." in text
    assert "Settings of DPS, steps 5:" in text
    assert all(version in text for version in report["versions"].values())


def test_the_main_numbers_are_those_of_the_best_solver(report):
    report["solvers"][0] |= {
        "psnr": 21.26,
        "ssim": 0.8765,
        "residual": 0.913,
        "network_calls": 20,
        "seconds": 0.5,
    }
    report["solvers"][1] |= {"psnr": 19.0}
    text = text_of(inverse_page(report))
    for shown in ("21.3 dB", "0.876", "0.913", "DCDP, per image", "0.5 s"):
        assert shown in text
    for one in report["solvers"]:
        one["psnr"] = one["ssim"] = None
    text = text_of(inverse_page(report))
    assert "PSNR" not in text.split("Every image", maxsplit=1)[0]


def test_solvers_stand_in_a_table_and_in_a_figure_where_there_are_several(report):
    page = text_of(inverse_page(report))
    assert "What solvers reach, and what it takes" in page
    assert "Decoder calls" not in page  # all 0: the prior is not latent
    points = figures.effort(report).data
    assert [(point.x[0], point.y[0]) for point in points] == [
        (one["network_calls"], one["psnr"]) for one in report["solvers"]
    ]
    report["solvers"], report["rows"] = report["solvers"][:1], report["rows"][:MANY]
    assert figures.effort(report) is None
    assert "What solvers reach" not in text_of(inverse_page(report))


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate_is_told(report, passed):
    text = text_of(inverse_page({**report, "gate": {"min_psnr": 20, "passed": passed}}))
    assert f"{'Passed' if passed else 'Failed'} The best solver must reach 20 dB on average." in text


@pytest.mark.parametrize(
    "key",
    [
        *("source", "created", "operator", "sigma", "prior", "simulated", "shapes", "rows", "curves"),
        *("sentence", "seed", "notes", "versions", "command", "output", "measurement"),
    ],
)
def test_any_part_may_be_missing(report, result, key):
    del report[key]
    inverse_page(report, result=result).html()


@pytest.mark.parametrize("key", ["solvers", "names"])
def test_what_must_be_there(report, key):
    del report[key]
    with pytest.raises(DataError, match=key):
        inverse_page(report)


def test_pictures_are_the_images_themselves(result, truth):
    shown = figures.layers(result, 2)
    assert list(shown) == ["truth", "measured", "DCDP", "DPS, steps 5"]
    np.testing.assert_array_equal(pixels(shown["truth"]), np.rint(255 * truth[2, 0].numpy()))
    found = result.images["dcdp"][2][0].clamp(0, 1).numpy()
    np.testing.assert_array_equal(pixels(shown["DCDP"]), np.rint(255 * found))
    assert pixels(shown["measured"]).shape == (2, 2)


def test_the_page_offers_what_may_stand_left_and_right(report, result):
    html = inverse_page(report, result=result).html()
    assert html.count('<figure class="slider">') == figures.SHOWN
    sides = re.findall(r'<select data-side="(\w+)"[^>]*>(.*?)</select>', html)
    names = {side: re.findall(r"<option>(.*?)</option>", options) for side, options in sides}
    assert names == {
        "before": ["measured", "truth", "DPS, steps 5"],
        "after": ["DCDP", "DPS, steps 5"],
    }
    first = re.search(r'<div class="slider-frame">(.*?)</div>', html, flags=re.S)[1]
    visible = [tag for tag in re.findall(r"<img[^>]*>", first) if not tag.endswith(" hidden>")]
    assert [re.search(r'data-layer="(.*?)"', tag)[1] for tag in visible] == ["measured", "DCDP"]


def test_of_many_images_the_worst_to_the_best_are_shown(report):
    nearest = max(report["solvers"], key=lambda one: one["psnr"])["name"]
    found = {row["image"]: row["psnr"] for row in report["rows"] if row["solver"] == nearest}
    shown = [found[report["names"][i]] for i in figures.chosen(report)]
    assert len(shown) == figures.SHOWN < MANY
    assert shown == sorted(shown)
    assert shown[0] == min(found.values())
    assert shown[-1] == max(found.values())
    for row in report["rows"]:
        row["psnr"] = None
    assert figures.chosen(report) == list(range(figures.SHOWN))


def test_error_maps_hold_the_errors(result, truth):
    figure, height = figures.error_maps(result, [0, 3])
    assert len(figure.data) == 4
    assert height == 470
    found = result.images["dps-steps=5"][3]
    np.testing.assert_allclose(figure.data[3].z, (found - truth[3]).abs()[0].numpy(), atol=1e-6)
    assert len({(one.zmin, one.zmax) for one in figure.data}) == 1


def test_curves_are_medians_over_images(report):
    line, *_, noise = figures.curves(report).data
    expected = np.median([curve for curve in report["curves"]["dcdp"]], axis=0)
    np.testing.assert_allclose(line.y, expected)
    assert line.customdata[-1] == len(expected)
    assert list(noise.y) == [1, 1]
    report["sigma"] = 0.0
    assert all(trace.name != "the noise" for trace in figures.curves(report).data)
    assert figures.curves({"curves": {"dcdp": [[], []]}}) is None


def test_residuals_are_bars_of_few_images_and_boxes_of_many(report):
    bars = figures.residuals(report).data
    assert [bar.type for bar in bars] == ["bar", "bar"]
    assert list(bars[0].y) == [row["residual"] for row in report["rows"] if row["solver"] == "dcdp"]
    report["rows"] *= 4
    assert [box.type for box in figures.residuals(report).data] == ["box", "box"]


def test_without_a_truth_measurement_and_reconstruction_are_shown(prior):
    y = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    found = reconstruct(measurement=y, operator="denoise", sigma=0.1, prior=prior)
    assert list(figures.layers(found, 0)) == ["measured", "DCDP without noise"]
    text = text_of(inverse_page(found.report, result=found))
    assert "Before and after" in text
    assert "Where it is wrong" not in text
    assert figures.error_maps(found, [0]) is None


def test_a_measurement_that_is_no_image_leaves_one_picture_without_a_line(prior):
    class Unknown:
        def A(self, x):
            return x.flip(-1)  # as large as an image

    found = reconstruct(measurement=torch.zeros(1, 1, 4, 4), operator=Unknown(), sigma=0.1, prior=prior)
    assert list(figures.layers(found, 0)) == ["DCDP without noise"]
    html = inverse_page(found.report, result=found).html()
    assert '<figure class="slider">' in html
    assert 'type="range"' not in html


def test_names_are_escaped(report, result):
    report["source"] = "<script>alert(1)</script>"
    for row in report["rows"]:
        row["image"] = '"><script>alert(2)</script>' + row["image"]
    report["names"] = [row["image"] for row in report["rows"][:MANY]]
    html = inverse_page(report, result=result).html()
    assert "<script>alert(1)" not in html
    assert "<script>alert(2)" not in html


@pytest.mark.parametrize("shape", [(5, 3), (4, 6, 3), (1, 1)])
def test_png_is_exact(shape):
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    uri = png_uri(levels)
    np.testing.assert_array_equal(pixels(uri).reshape(shape), levels)
    raw = base64.b64decode(uri.split(",", 1)[1])
    assert zlib.crc32(raw[12:29]) == int.from_bytes(raw[29:33], "big")


def test_png_takes_only_images_of_bytes():
    for wrong in (np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8), np.zeros(3, np.uint8)):
        with pytest.raises(ShapeError, match="png_uri: got"):
            png_uri(wrong)


@pytest.mark.parametrize(("channels", "mode"), [(1, (4, 4)), (2, (4, 4)), (3, (4, 4, 3)), (5, (4, 4))])
def test_channels_become_gray_or_color(channels, mode):
    assert figures._levels(np.full((channels, 4, 4), 0.6), (0, 1)).shape == mode
    magnitude = figures._levels(np.stack([np.full((1, 1), 0.3), np.full((1, 1), 0.4)]), (0, 1))
    assert magnitude[0, 0] == round(255 * 0.5)


def test_large_images_are_thinned_by_means():
    image = np.arange(2 * 6.0 * 5).reshape(2, 6, 5)
    thin = figures._thinned(image, 3)
    assert thin.shape == (2, 3, 2)
    assert thin[1, 2, 1] == image[1, 4:6, 2:4].mean()
    assert figures._thinned(image, 6) is image
