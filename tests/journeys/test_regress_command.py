"""`lowdim regress` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import lowdim.cli
from lowdim.regress import RegressResult, TensorClassifier
from lowdim.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore")

TIMED = ("seconds", "created", "command", "output")
QUICK = ("--rank", "1,2", "--alpha", "0.01,0.1", "--folds", 3)


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["regress", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def lasting(report: dict) -> dict:
    return {key: value for key, value in report.items() if key not in TIMED}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Images of 8 x 6 pixels, of which a rectangle makes the target."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 8, 6)) * 20 + 128
    y = X[:, 2:5, 1:4].sum((1, 2)) - X[:, 6, 4] + 5 * rng.normal(size=90)
    path = tmp_path_factory.mktemp("regress") / "scans.npz"
    np.savez(path, X=X, y=y, grade=np.digitize(y, np.quantile(y, [1 / 3, 2 / 3])), dose=y / 10)
    return path


@pytest.fixture(scope="module")
def done(file, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("done") / "out"
    result = call("fit", file, "-o", out, *QUICK)
    return out, result.stdout


def test_it_writes_model_coefficients_predictions_report_and_page(done):
    out, shown = done
    assert {path.name for path in out.iterdir()} == {
        *(
            "model",
            "coefficients.npy",
            "predictions.csv",
            "report.json",
            "report.html",
            "manifest.json",
            ".lock",
        )
    }
    assert {path.name for path in (out / "model").iterdir()} == {"model.json", "model.safetensors"}
    report = json.loads((out / "report.json").read_text())
    assert report["task"] == "regression"
    assert report["rank"] == 2
    assert report["assessment"]["score"] > 0.95
    assert np.load(out / "coefficients.npy").shape == (8, 6)
    table = pd.read_csv(out / "predictions.csv")
    assert list(table.columns) == ["sample", "target", "predicted"]
    residual = table["target"] - table["predicted"]
    assert 1 - residual.var() / table["target"].var() == pytest.approx(
        report["assessment"]["score"], abs=1e-3
    )
    text = " ".join(shown.split())
    assert report["sentence"] in text
    assert "Model: cp, rank 2, 28 parameters; 90 samples." in text
    assert json.loads((out / "manifest.json").read_text())["command"] == "regress fit"
    page = (out / "report.html").read_text()
    assert "Coefficients" in page


def test_new_samples_are_predicted_as_in_python(done, file, tmp_path):
    out, _ = done
    shown = call("predict", out, file, "-o", tmp_path / "new.csv").stdout
    table = pd.read_csv(tmp_path / "new.csv")
    model = RegressResult.load(out).model
    X = np.load(file)["X"]
    np.testing.assert_allclose(table["predicted"], model.predict(X))
    assert "of the variance is explained (90 samples)" in shown
    assert "... and 70 more" in shown
    np.save(tmp_path / "new.npy", X[:3])
    answer = json.loads(call("predict", out, tmp_path / "new.npy", "--json").stdout)
    assert answer["score"] is None
    np.testing.assert_allclose([row["predicted"] for row in answer["predictions"]], model.predict(X[:3]))


def test_json_is_the_report_and_nothing_else(file, tmp_path):
    result = call("fit", file, "-o", tmp_path / "out", *QUICK, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "assess" in result.stderr


def test_without_output_the_finding_is_shown_and_nothing_written(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "add -o OUT" in call("fit", file, *QUICK).stdout
    assert list(tmp_path.iterdir()) == []


def test_every_option_counts(file, done, tmp_path):
    plain = json.loads((done[0] / "report.json").read_text())

    def report(*words: object) -> dict:
        return json.loads(call("fit", file, *words, "--json").stdout)

    assert report(*QUICK, "--target", "grade")["task"] == "classification"
    assert report(*QUICK, "--target", "grade", "--task", "regression")["task"] == "regression"
    assert report(*QUICK, "--target", "grade", "--loss", "squared_hinge")["parameters"] % 3 == 0
    assert report(*QUICK, "--form", "tucker")["parameters"] == 4 + 28
    assert report("--rank", "2x2", "--form", "tucker", "--folds", 3, "--alpha", "0.1")["rank"] == [2, 2]
    assert report("--rank", "3", "--alpha", "0.1", "--folds", 3)["comparison"]["alpha"] == [0.1]
    assert report(*QUICK, "--folds", 4)["assessment"] != plain["assessment"]
    assert report(*QUICK, "--seed", 1)["assessment"] != plain["assessment"]
    assert report(*QUICK, "--starts", 3)["settings"]["n_init"] == 3
    assert report(*QUICK, "--shape", "8x6")["shape"] == [8, 6]
    np.save(tmp_path / "mask.npy", np.arange(48).reshape(8, 6) > 5)
    masked = report(*QUICK, "--mask", tmp_path / "mask.npy")
    assert (masked["masked"], masked["places"]) == (True, 42)


def test_a_table_of_numbers(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    table = pd.DataFrame(X, columns=["acid", "sugar", "salt", "pH"])
    table.insert(0, "wine", [f"w{i}" for i in range(60)])
    table["taste"] = X @ [1, 2, 0, -1] + 0.1 * rng.normal(size=60)
    table.to_csv(tmp_path / "wines.csv", index=False)
    call("fit", tmp_path / "wines.csv", "--target", "taste", "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["form"], report["features"]) == ("vector", ["acid", "sugar", "salt", "pH"])
    assert report["assessment"]["score"] > 0.98
    # Columns are found by their names, in any order; the target may be missing.
    table[["pH", "salt", "sugar", "acid"]].to_csv(tmp_path / "new.csv", index=False)
    found = json.loads(call("predict", tmp_path / "out", tmp_path / "new.csv", "--json").stdout)
    assert np.corrcoef([row["predicted"] for row in found["predictions"]], table["taste"])[0, 1] > 0.99


def test_volumes_with_labels_and_a_mask(tmp_path):
    nibabel = pytest.importorskip(
        "nibabel", reason="nibabel is not installed (pip install 'lowdim[imaging]')"
    )
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    mask = np.zeros((6, 5, 4))
    mask[1:5, 1:4, :] = 1
    (tmp_path / "scans").mkdir()
    rows = []
    for i in range(40):
        volume = rng.normal(size=(6, 5, 4))
        nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "scans" / f"sub-{i}.nii.gz")
        rows.append({"file": f"sub-{i}", "age": 40 + volume[2:4, 2, 1:3].sum()})
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "mask.nii")
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_csv(tmp_path / "ages.csv", index=False)
    words = [tmp_path / "scans", "--labels", tmp_path / "ages.csv", "--target", "age"]
    call("fit", *words, "--mask", tmp_path / "mask.nii", "-o", tmp_path / "out", *QUICK)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["assessment"]["score"] > 0.8
    shown = nibabel.load(tmp_path / "out" / "coefficients.nii.gz")
    np.testing.assert_array_equal(shown.affine, affine)
    coef = np.asarray(shown.dataobj)
    assert not coef[mask == 0].any()
    np.testing.assert_allclose(coef, np.load(tmp_path / "out" / "coefficients.npy"), rtol=1e-6)
    found = call("predict", tmp_path / "out", *words).stdout
    assert "of the variance is explained (40 samples)" in found


def test_faces_are_told_from_background_with_forty_images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    data = pytest.importorskip(
        "skimage.data", reason="scikit-image is not installed (pip install 'lowdim[peers]')"
    )
    try:
        pictures = data.lfw_subset()
    except Exception as error:  # it may have to be downloaded
        pytest.skip(f"lfw_subset of scikit-image is not here: {error}")
    order = [np.random.default_rng(k).permutation(100) for k in range(2)]
    for kind, place, begin in (("face", 0, 0), ("background", 1, 100)):
        for part, chosen in (("train", order[place][:20]), ("test", order[place][20:])):
            folder = tmp_path / part / kind
            folder.mkdir(parents=True)
            for number in chosen:
                gray = np.round(255 * pictures[begin + number]).astype(np.uint8)
                image.fromarray(gray).save(folder / f"{number}.png")
    call("fit", tmp_path / "train", "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["task"], report["samples"], report["shape"]) == ("classification", 40, [25, 25])
    assert report["classes"] == ["background", "face"]
    found = json.loads(call("predict", tmp_path / "out", tmp_path / "test", "--json").stdout)
    assert len(found["predictions"]) == 160
    assert found["score"] > 0.85
    assert all(0.5 <= row["probability"] <= 1 for row in found["predictions"])
    assert isinstance(RegressResult.load(tmp_path / "out").model, TensorClassifier)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--target", "moon"), "scans.npz has no array 'moon'. Arrays: X, y, grade, dose"),
        (("--rank", "many"), "--rank many: expected auto, a number, or several such as 1,2"),
        (("--rank", "7"), "rank=7 is too large for a tensor of shape (8, 6)"),
        (("--rank", "2x2"), "a CP form has one rank"),
        (("--rank", "2x2x2", "--form", "tucker"), "has 3 Tucker ranks, 2 are needed"),
        (("--rank", "0"), "--rank 0: expected auto"),
        (("--alpha", "much"), "--alpha much: expected auto, a number"),
        (("--alpha", "-1"), "must be finite numbers, 0 or more"),
        (("--shape", "8by6"), "--shape 8by6: expected sizes such as 32x32"),
        (("--shape", "6x8"), "samples of X have shape (8, 6), shape=(6, 8)"),
        (("--folds", "1"), "folds=1 are too few"),
        (("--folds", "99"), "99 folds cannot be made of 90 samples"),
        (("--starts", "0"), "n_init=0 must be a positive integer"),
        (("--form", "train"), "Invalid value for '--form'"),
        (("--mask", "none.npy"), "there is no mask"),
        (("--labels", "none.csv"), "there is no file"),
        (("--resume", "--restart"), "Give only one"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(file, tmp_path, words, text):
    out = tmp_path / "out"
    assert text in told(call("fit", file, "-o", out, *words, code=2))
    assert not out.exists()


def test_data_that_cannot_be_used(tmp_path, done):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 4, 3))

    def refused(text, **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        assert text in told(call("fit", tmp_path / "a.npz", code=2))

    refused("a.npz has no targets", X=X)
    refused("holds 2 arrays of samples", X=X, Z=X, y=X[:, 0, 0])
    refused(
        "sample 3 of a.npz holds NaN", X=np.where(np.arange(20)[:, None, None] == 3, np.nan, X), y=X[:, 0, 0]
    )
    refused("y of a.npz has shape (19,), expected (20,)", X=X, y=X[1:, 0, 0])
    refused("all targets of a.npz are 'a'", X=X, y=np.full(20, "a"))
    refused("all targets of a.npz are 2", X=X, y=np.full(20, 2.0))
    refused("some targets of a.npz are missing", X=X, y=np.where(np.arange(20) == 3, np.nan, X[:, 0, 0]))
    refused("has 3 samples, expected 4 or more", X=X[:3], y=X[:3, 0, 0])
    refused("are equal: nothing can be learned", X=np.ones((20, 4, 3)), y=X[:, 0, 0])
    refused("folds cannot be made of 2 samples of the rarest class", X=X, y=np.arange(20) < 2)
    refused("holds complex128", X=X + 1j, y=X[:, 0, 0])
    assert "there is no file" in told(call("fit", tmp_path / "none.npz", code=2))
    (tmp_path / "a.doc").write_text("x")
    assert "a.doc has no known format" in told(call("fit", tmp_path / "a.doc", code=2))
    (tmp_path / "empty").mkdir()
    assert "holds no images and no volumes" in told(call("fit", tmp_path / "empty", code=2))
    assert "holds no report.json" in told(call("predict", tmp_path, tmp_path / "a.npz", code=2))
    np.save(tmp_path / "other.npy", X)
    assert "samples have shape (4, 3), expected (8, 6) as in the fit" in told(
        call("predict", done[0], tmp_path / "other.npy", code=2)
    )
    np.save(tmp_path / "bad.npy", np.full((2, 8, 6), np.nan))
    assert "sample 0 holds NaN" in told(call("predict", done[0], tmp_path / "bad.npy", code=2))


def test_labels_of_new_samples_are_found_by_the_name_of_the_fit(done, file, tmp_path):
    arrays = np.load(file)
    out = tmp_path / "out"
    call("fit", file, "--target", "dose", "-o", out, *QUICK)
    np.save(tmp_path / "new.npy", arrays["X"][:20])
    labels = pd.DataFrame({"y": arrays["y"][::-1][:20], "dose": arrays["dose"][:20], "site": ["a"] * 20})
    labels.loc[0, "dose"] = np.nan
    labels.to_csv(tmp_path / "l.csv", index=False)
    answer = call("predict", out, tmp_path / "new.npy", "--labels", tmp_path / "l.csv", "--json").stdout
    assert json.loads(answer)["score"] > 0.9
    assert json.loads(answer)["predictions"][0]["target"] is None
    shown = call("predict", out, tmp_path / "new.npy", "--labels", tmp_path / "l.csv").stdout
    assert "of the variance is explained (19 samples)" in shown
    assert "nan" not in shown
    # Without that column nothing else is taken for it, and words are no numbers to be judged by.
    labels.drop(columns="dose").to_csv(tmp_path / "l.csv", index=False)
    answer = call("predict", out, tmp_path / "new.npy", "--labels", tmp_path / "l.csv", "--json").stdout
    assert json.loads(answer)["score"] is None
    words = ("--labels", tmp_path / "l.csv", "--target", "site", "--json")
    assert json.loads(call("predict", out, tmp_path / "new.npy", *words).stdout)["score"] is None
    wrong = ("--labels", tmp_path / "l.csv", "--target", "dosis")
    assert "there is no target 'dosis'" in told(call("predict", out, tmp_path / "new.npy", *wrong, code=2))


def test_it_is_not_repeated_but_can_be_read_again_or_restarted(done, file):
    out, _ = done
    words = ["fit", file, "-o", out, *QUICK]
    assert "already holds a finished run" in told(call(*words, code=2))
    assert "seed was 0 and is now 5" in told(call(*words, "--seed", 5, "--resume", code=2))
    before = (out / "predictions.csv").stat().st_mtime_ns
    report = lasting(json.loads((out / "report.json").read_text()))
    shown = call(*words, "--resume").stdout
    assert (out / "predictions.csv").stat().st_mtime_ns == before
    assert report["sentence"] in " ".join(shown.split())
    call(*words, "--restart")
    assert (out / "predictions.csv").stat().st_mtime_ns > before
    assert lasting(json.loads((out / "report.json").read_text())) == report


def test_folders_in_use_or_of_others_are_safe(file, tmp_path):
    out = tmp_path / "out"
    with Run.open(out, command="regress fit", arguments={}, seed=0):
        assert "is in use by another lowdim process" in told(call("fit", file, "-o", out, *QUICK, code=2))
    (tmp_path / "letter.txt").write_text("mine")
    assert "is not empty" in told(call("fit", file, "-o", tmp_path, *QUICK, "--restart", code=2))
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_help_tells_every_option():
    shown = call("fit", "--help").stdout
    for option in (
        *("--output", "--target", "--labels", "--mask", "--shape", "--task", "--rank", "--alpha", "--form"),
        *("--loss", "--folds", "--starts", "--seed", "--resume", "--restart", "--json"),
    ):
        assert option in shown
    assert "--labels" in call("predict", "--help").stdout
