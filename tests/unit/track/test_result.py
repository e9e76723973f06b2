"""`track` chooses, fills in, saves and goes on; the subspace at rest."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.utils.estimator_checks import check_estimator

from lowdim.errors import DataError, LowdimWarning, RankError, RunError, ShapeError
from lowdim.runs import atomic_json, read_json
from lowdim.track import (
    GeodesicSubspace,
    PiecewiseGeodesicSubspace,
    StaticSubspace,
    TrackResult,
    choose,
    follow,
    pipeline,
    track,
)
from lowdim.track.follow import MODELS, STREAMED, angles_from

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")

T, D = 60, 8


@pytest.fixture(scope="module")
def panel():
    """A line that turns by 75 degrees, with a third of its entries missing; and the whole truth."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, T)
    Q = np.linalg.qr(rng.normal(size=(D, 2)))[0]
    angle = np.radians(75) * t[:, None]
    truth = (np.cos(angle) * Q[:, 0] + np.sin(angle) * Q[:, 1]) * rng.normal(size=(T, 1))
    X = np.where(rng.random((T, D)) < 1 / 3, np.nan, truth + 0.02 * rng.normal(size=(T, D)))
    return X, truth


@pytest.fixture(scope="module")
def moved(panel):
    return track(panel[0], n_components=1)


@pytest.fixture
def two_pieces(monkeypatch):
    """Pieces with a given knot: to look for knots takes many fits."""
    kind = functools.partial(PiecewiseGeodesicSubspace, knots=[T / 2])
    monkeypatch.setattr(choose, "PiecewiseGeodesicSubspace", kind)
    monkeypatch.setitem(follow.FITTED, "piecewise", kind)


def lasting(report):
    return {key: value for key, value in report.items() if key not in ("seconds", "created")}


def test_motion_is_found_measured_and_used(panel, moved):
    X, truth = panel
    assert moved.report["model"] == "geodesic"
    assert isinstance(moved.model, GeodesicSubspace)
    assert moved.comparison.moving
    assert moved.report["turned"] == pytest.approx(75, abs=4)
    gaps = np.isnan(X)
    np.testing.assert_array_equal(moved.imputed[~gaps], X[~gaps])
    error = np.sqrt(np.mean((moved.imputed - truth)[gaps] ** 2))
    assert error < 0.1 * np.sqrt(np.mean(truth[gaps] ** 2))
    assert moved.angles.shape == (T, 1)
    assert moved.angles[0] == pytest.approx(0, abs=1e-6)
    assert np.degrees(moved.angles[-1, 0]) == pytest.approx(moved.report["turned"], abs=0.01)


def test_without_motion_the_best_subspace_at_rest_is_taken():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(T, 2)) @ rng.normal(size=(2, D)) + 0.01 * rng.normal(size=(T, D))
    result = track(np.where(rng.random(X.shape) < 0.2, np.nan, X))
    assert result.report["model"] == "static"
    assert result.report["n_components"] == 2
    assert (result.angles == 0).all() or np.abs(result.angles).max() < 1e-6
    assert result.report["turned"] == pytest.approx(0, abs=1e-6)
    assert "No motion is needed" in result.summary()


def test_components_are_those_of_the_best_geodesic(panel):
    result = track(panel[0], model="geodesic")
    rows = result.comparison.table.query("model == 'geodesic'")
    assert set(rows["n_components"]) == {1, 2}  # d // 4, with as many numbers as unknowns
    assert result.report["n_components"] == rows.loc[rows["error"].idxmin(), "n_components"]


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"geodesic"}))
def test_every_model_can_be_asked_for(panel, two_pieces, model, tmp_path):
    X, _ = panel
    result = track(X, n_components=1, model=model)
    table = result.comparison.table
    assert result.report["model"] == model
    assert type(result.model) is MODELS[model]
    assert ((table["model"] == model) & (table["n_components"] == 1)).sum() == 1
    assert result.comparison.best["error"] == table["error"].min()
    assert np.isfinite(result.imputed).all()
    seen = ~np.isnan(X)
    np.testing.assert_allclose(result.imputed[seen], X[seen])
    result.save(tmp_path)
    again = TrackResult.load(tmp_path)
    assert type(again.model) is MODELS[model]
    np.testing.assert_array_equal(again.imputed, result.imputed)
    np.testing.assert_array_equal(again.angles, result.angles)
    assert again.report == json.loads(json.dumps(result.report)) == read_json(tmp_path / "report.json")
    assert again.comparison.sentence() == result.comparison.sentence()
    pd.testing.assert_frame_equal(again.comparison.table, table, check_dtype=False)


def test_pieces_are_compared_at_the_chosen_number(panel, two_pieces):
    table = track(panel[0], model="piecewise").comparison.table
    assert table["model"].tolist().count("piecewise") == 1


@pytest.mark.parametrize("model", ["grouse", "window"])
def test_streams_see_the_frames_in_the_order_of_time(panel, model):
    X, _ = panel
    order = np.random.default_rng(2).permutation(T)
    straight = track(X, n_components=1, model=model)
    mixed = track(X[order], n_components=1, model=model, t=order)
    np.testing.assert_allclose(mixed.imputed, straight.imputed[order])
    np.testing.assert_allclose(mixed.angles, straight.angles[order], atol=1e-7)


def test_hidden_entries_are_hidden_from_streams(panel, monkeypatch):
    X, _ = panel
    looked = []
    real = pipeline.follow

    def spy(name, frames, seen, *rest, **options):
        looked.append((frames.copy(), seen.copy()))
        return real(name, frames, seen, *rest, **options)

    monkeypatch.setattr(pipeline, "follow", spy)
    result = track(X, n_components=1, model="grouse")
    (frames, measured), (_, whole) = looked
    assert (whole & ~measured).sum() == result.comparison.held_out > 0
    assert (frames[~measured] == 0).all()


def test_what_nobody_has_seen_stays_empty(panel):
    X = panel[0].copy()
    X[7], X[:, 3] = np.nan, np.nan
    result = track(X, n_components=1)
    empty = np.isnan(result.imputed)
    assert empty[7].all()
    assert empty[:, 3].all()
    assert empty.sum() == D + T - 1 == result.report["left_empty"]
    assert result.report["filled"] == np.isnan(X).sum() - empty.sum()
    notes = " ".join(result.report["notes"])
    assert "one frame nothing was seen" in notes
    assert "one feature nothing was seen" in notes


def test_tables_come_back_as_tables(panel, tmp_path):
    X, _ = panel
    table = pd.DataFrame(X, columns=[f"s{i}" for i in range(D)])
    table.insert(0, "day", pd.date_range("2024-01-01", periods=T).strftime("%Y-%m-%d"))
    table.to_csv(tmp_path / "in.csv", index=False)
    result = track(tmp_path / "in.csv", n_components=1)
    result.save(tmp_path / "out")
    filled = pd.read_csv(tmp_path / "out" / "imputed.csv", float_precision="round_trip")
    assert list(filled.columns) == list(table.columns)
    assert (filled["day"] == table["day"]).all()
    np.testing.assert_array_equal(filled.iloc[:, 1:], result.imputed)
    assert result.report["time"] == {
        "kind": "dates",
        "name": "day",
        "first": "2024-01-01",
        "last": "2024-02-29",
    }
    assert (TrackResult.load(tmp_path / "out").times == result.times).all()


def test_stacks_come_back_as_stacks(panel, tmp_path):
    stack = panel[0].reshape(T, 2, 4)
    result = track(stack, n_components=1, output=tmp_path / "out")
    filled = np.load(tmp_path / "out" / "imputed.npy")
    assert filled.shape == stack.shape
    np.testing.assert_array_equal(filled, result.imputed.reshape(stack.shape))
    assert len(result.report["pictures"]) == 4
    assert "panel" not in result.report


def test_the_report_is_small_and_without_nan(moved):
    text = json.dumps(moved.report, allow_nan=False)
    rng = np.random.default_rng(0)
    wide = track(rng.normal(size=(500, 1)) * rng.normal(size=300), n_components=1, model="grouse")
    shown = wide.report["panel"]
    assert len(shown["values"]) <= 200
    assert len(shown["values"][0]) == len(shown["seen"][0]) == len(shown["names"]) <= 200
    assert len(wide.report["angles"]["degrees"]) <= 400
    assert len(json.dumps(wide.report, allow_nan=False)) < 500_000
    assert len(text) < 50_000


def test_the_same_seed_gives_the_same_result(panel, moved):
    again = track(panel[0], n_components=1)
    np.testing.assert_array_equal(again.imputed, moved.imputed)
    assert lasting(again.report) == lasting(moved.report)
    other = track(panel[0], n_components=1, seed=1)
    assert other.comparison.best["error"] != moved.comparison.best["error"]


def test_warnings_of_the_fit_are_noted_those_of_trials_are_not(panel):
    # Four of eight entries in every frame, too few for two components.
    X = np.where(
        np.random.default_rng(0).permuted(np.arange(D) < 4 + np.zeros((T, 1)), axis=1), panel[1], np.nan
    )
    with pytest.warns(LowdimWarning, match="three per component") as caught:
        result = track(X, n_components=2, model="geodesic")
    assert len([entry for entry in caught if issubclass(entry.category, LowdimWarning)]) == 1
    assert any("three per component" in note for note in result.report["notes"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_components": 0}, RankError, "must be 'auto' or a positive integer"),
        ({"n_components": 5}, RankError, "Use at most 4"),
        ({"model": "magic"}, DataError, "model='magic' is unknown"),
        ({"held_out": 1.0}, DataError, "held_out=1 must be between 0 and 1"),
        ({"ridge": 0.0}, DataError, "ridge=0 must be a positive number"),
        ({"n_init": 0}, DataError, "n_init=0 starts are too few"),
        ({"t": [0.0]}, ShapeError, "need as many times"),
        ({"t": np.zeros(T)}, DataError, "have the same time"),
        ({"resume": True}, RunError, "need the output folder"),
    ],
)
def test_options_that_are_refused(panel, options, error, message):
    with pytest.raises(error) as caught:
        track(panel[0], **options)
    assert message in str(caught.value)


def test_frames_that_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="has 1 feature"):
        track(np.arange(10.0)[:, None])
    with pytest.raises(DataError, match="infinity"):
        track(np.full((5, 4), np.inf), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ShapeError, match="at least 4 times"):
        track(np.ones((3, 4)))
    with pytest.raises(DataError, match="entries can be hidden"):
        track(np.ones((4, 4)), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class TestRun:
    def test_an_interrupted_run_goes_on_from_the_comparison(self, panel, tmp_path, monkeypatch, moved):
        real, out = pipeline.follow, tmp_path / "out"

        def interrupted(*given, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "follow", interrupted)
        with pytest.raises(KeyboardInterrupt):
            track(panel[0], n_components=1, output=out)
        assert read_json(out / "manifest.json")["status"] == "interrupted"
        assert not (out / "report.json").exists()
        monkeypatch.setattr(pipeline, "follow", real)
        with pytest.raises(RunError, match="already holds an unfinished run"):
            track(panel[0], n_components=1, output=out)
        with pytest.raises(RunError, match="the input frames has changed"):
            track(panel[0] + 1, n_components=1, output=out, resume=True)
        with pytest.raises(RunError, match=r"ridge was 1e-06 and is now 0\.1"):
            track(panel[0], n_components=1, ridge=0.1, output=out, resume=True)
        monkeypatch.setattr(pipeline, "compare", interrupted)
        result = track(panel[0], n_components=1, output=out, resume=True)
        assert lasting(result.report) == lasting(moved.report)
        np.testing.assert_array_equal(result.imputed, moved.imputed)
        assert {path.name for path in out.iterdir()} == {
            *("imputed.npy", "angles.csv", "model", "report.json", "manifest.json", ".lock")
        }

    def test_a_changed_comparison_is_noticed(self, panel, tmp_path, monkeypatch):
        out = tmp_path / "out"
        monkeypatch.setattr(pipeline, "follow", lambda *given, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            track(panel[0], n_components=1, output=out)
        kept = out / ".work" / "comparison.json"
        kept.write_text(kept.read_text().replace("geodesic", "window"))
        with pytest.raises(RunError, match="was changed after it was written"):
            track(panel[0], n_components=1, output=out, resume=True)

    def test_finished_runs_are_read_and_restarts_leave_nothing_old(self, panel, two_pieces, tmp_path):
        out = tmp_path / "out"
        options = {"n_components": 1, "model": "piecewise", "output": out}
        first = track(panel[0], **options)
        written = (out / "imputed.npy").stat().st_mtime_ns
        again = track(panel[0], **options, resume=True)
        assert (out / "imputed.npy").stat().st_mtime_ns == written
        assert again.report == first.report
        assert (out / "model" / "piece-0").exists()
        table = pd.DataFrame(panel[0]).rename(columns=str)
        track(table, n_components=1, model="static", output=out, restart=True)
        assert not (out / "model" / "piece-0").exists()
        assert not (out / "imputed.npy").exists()
        assert TrackResult.load(out).report["model"] == "static"


def test_folders_that_hold_no_result(moved, tmp_path):
    with pytest.raises(RunError, match="holds no report"):
        TrackResult.load(tmp_path)
    moved.save(tmp_path)
    (tmp_path / "angles.csv").unlink()
    with pytest.raises(RunError, match="incomplete or damaged"):
        TrackResult.load(tmp_path)
    atomic_json(tmp_path / "report.json", {**moved.report, "format": 99})
    with pytest.raises(RunError, match="no report of `lowdim track` in format 1"):
        TrackResult.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        moved.save(tmp_path / "file")


def test_angles_are_those_of_the_planes():
    turn = np.radians([0.0, 30.0, 90.0])
    bases = np.stack([[[1, 0], [0, np.cos(a)], [0, np.sin(a)]] for a in turn])
    np.testing.assert_allclose(np.degrees(angles_from(bases, 0)), [[0, 0], [30, 0], [90, 0]], atol=1e-6)
    np.testing.assert_allclose(np.degrees(angles_from(bases, 1))[:, 0], [30, 0, 60], atol=1e-6)


class TestStaticSubspace:
    def test_it_is_the_best_subspace_of_complete_frames(self):
        X = np.random.default_rng(0).normal(size=(30, 6)) * [5, 4, 1, 1, 1, 1]
        model = StaticSubspace(2, ridge=0).fit(X)
        V = np.linalg.svd(X)[2][:2].T
        np.testing.assert_allclose(model.U_ @ model.U_.T, V @ V.T, atol=1e-6)
        np.testing.assert_allclose(model.transform(X), model.coefficients_, atol=1e-6)
        assert model.loss_ == pytest.approx(((X - X @ V @ V.T) ** 2).sum())
        assert model.basis().shape == (30, 6, 2)
        assert model.basis(0.5).shape == (6, 2)

    def test_gaps_are_filled_and_it_is_kept(self, tmp_path):
        rng = np.random.default_rng(0)
        truth = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 8))
        X = np.where(rng.random(truth.shape) < 0.2, np.nan, truth)
        model = StaticSubspace(2, ridge=1e-10).fit(X)
        np.testing.assert_allclose(model.impute(X), truth, atol=1e-2)
        model.save(tmp_path)
        again = StaticSubspace.load(tmp_path)
        np.testing.assert_array_equal(again.impute(X), model.impute(X))
        with pytest.raises(RunError, match=r"Use StaticSubspace\.load"):
            GeodesicSubspace.load(tmp_path)

    def test_refusals(self):
        with pytest.raises(RankError, match="Use at most 3"):
            StaticSubspace(4).fit(np.ones((5, 3)))
        with pytest.raises(DataError, match="must not be negative"):
            StaticSubspace(1, ridge=-1).fit(np.ones((5, 3)))

    def test_it_keeps_the_contract_of_estimators(self):
        meant = {
            "check_complex_data": "complex numbers are supported, not refused",
            "check_dtype_object": "what holds no numbers is a DataError (a ValueError), not a TypeError",
        }
        results = check_estimator(StaticSubspace(), expected_failed_checks=meant, on_skip=None, on_fail=None)
        assert not {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
        assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(meant)


def test_the_streams_are_those_of_the_room():
    assert set(STREAMED) == {"grouse", "petrels", "grasta", "window"}
