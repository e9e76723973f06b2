"""`recover` finds frames, tells how well, saves, and goes on where it was stopped."""

import json

import numpy as np
import pytest

from lowdim.errors import DataError, LowdimWarning, RankError, RunError, ShapeError
from lowdim.phase import (
    LowRankPhaseRetrieval,
    PhaseResult,
    Recording,
    TuckerPhaseRetrieval,
    pipeline,
    recover,
    relative_error,
    simulate,
    smooth_phases,
)
from lowdim.runs import atomic_json, read_json

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")

Q, H, W = 12, 6, 7
RANKS = (2, 2, 2)


@pytest.fixture(scope="module")
def film():
    rng = np.random.default_rng(0)
    return np.einsum("kc,ic,jc->kij", *(rng.normal(size=(n, 2)) for n in (Q, H, W)))


@pytest.fixture(scope="module")
def recording(film):
    return simulate(film, measurements=1)


@pytest.fixture(scope="module")
def result(recording):
    return recover(recording, ranks=RANKS)


def lasting(report):
    return {key: value for key, value in report.items() if key not in ("seconds", "created")}


def test_frames_are_found_and_their_quality_is_told(result, film, recording):
    report = result.report
    assert result.frames.shape == film.shape
    assert report["error"]["total"] == pytest.approx(relative_error(result.frames, film), abs=1e-12)
    assert report["error"]["total"] < 1e-6
    assert len(report["error"]["per_frame"]) == len(report["unexplained"]["per_frame"]) == Q
    assert report["unexplained"]["total"] < 1e-6
    assert report["ranks"] == list(RANKS)
    assert report["unknowns"] == 8 + 2 * (Q + H + W)
    assert (report["frames"], report["image_shape"], report["measurements"]) == (Q, [H, W], H * W)
    assert report["real"] is True
    assert report["choice"] is None
    assert report["loss"] == result.model.loss_
    assert report["sentence"] == result.summary()
    assert f"{Q} frames of 42 pixels were recovered from 42 magnitudes each (100%" in result.summary()


def test_it_is_what_the_estimator_finds(result, recording):
    model = TuckerPhaseRetrieval(RANKS).fit(recording.A, recording.y)
    np.testing.assert_array_equal(result.frames, smooth_phases(model.frames_))


def test_unexplained_is_measured_per_frame_and_in_all(recording):
    report = recover(recording, ranks=(1, 1, 1), n_init=1, max_iter=5).report
    x = recover(recording, ranks=(1, 1, 1), n_init=1, max_iter=5).frames
    misfit = np.abs(np.einsum("kmij,kij->km", recording.A, x)) - recording.y
    expected = np.linalg.norm(misfit, axis=1) / np.linalg.norm(recording.y, axis=1)
    np.testing.assert_allclose(report["unexplained"]["per_frame"], expected)
    total = np.linalg.norm(misfit) / np.linalg.norm(recording.y)
    assert report["unexplained"]["total"] == pytest.approx(total)
    assert total > 0.1


def test_singular_values_show_the_ranks(result, film):
    modes = {mode["mode"]: mode["values"] for mode in result.report["singular_values"]}
    assert list(modes) == ["rows", "columns", "frames"]
    expected = np.linalg.svd(film.reshape(Q, -1), compute_uv=False) / np.linalg.norm(film)
    np.testing.assert_allclose(modes["frames"][:2], expected[:2], rtol=1e-3)
    assert all(values[2] < 1e-6 for values in modes.values())


def test_ranks_are_chosen_by_held_out_measurements(film):
    recording = simulate(film, measurements=1.5, noise=0.02)
    told = []
    result = recover(recording, progress=lambda *given: told.append(given))
    choice = result.report["choice"]
    assert result.report["ranks"] == choice["ranks"] == list(RANKS)
    assert len(choice["candidates"]) >= 3
    model = TuckerPhaseRetrieval("auto").fit(recording.A, recording.y)
    assert model.choice_ == result.model.choice_
    np.testing.assert_array_equal(result.frames, smooth_phases(model.frames_))
    assert [phase for phase, *_ in told if phase == "choose"]
    assert told[-1][0] == "recover"


def test_frames_lie_in_a_space_of_the_given_rank(recording, film):
    result = recover(recording, method="lowrank", ranks=2)
    assert type(result.model) is LowRankPhaseRetrieval
    assert result.report["ranks"] == [2]
    assert result.report["unknowns"] == 2 * (Q + H * W)
    assert np.linalg.matrix_rank(result.frames.reshape(Q, -1), tol=1e-8) == 2


@pytest.mark.parametrize("kind", ["gaussian", "coded-diffraction"])
def test_single_frames_need_many_measurements(film, kind):
    recording = simulate(film, kind=kind, measurements=6)
    told = []
    progress = lambda *given: told.append(given)  # noqa: E731
    result = recover(recording, method="rwf", real=True, max_iter=1000, progress=progress)
    assert result.model is None
    assert result.report["ranks"] is None
    assert result.report["unknowns"] == Q * H * W
    good = np.array(result.report["error"]["per_frame"]) < 1e-3
    assert good.sum() >= Q - 2
    assert ("recover", Q, Q, "one by one") in told
    few = recover(simulate(film, kind=kind, measurements=0.5), method="rwf", real=True)
    assert few.report["error"]["total"] > 0.5


def test_real_frames_behind_a_complex_map(film):
    recording = simulate(film, kind="coded-diffraction", measurements=1)
    real = recover(recording, ranks=RANKS, real=True)
    assert real.frames.dtype == np.float64
    assert real.report["error"]["total"] < 1e-3
    assert not real.report["notes"]
    free = recover(recording, ranks=RANKS, n_init=1, max_iter=5)
    assert free.frames.dtype == np.complex128
    assert free.report["real"] is False
    assert "say so with real=True" in free.report["notes"][-1]
    assert json.dumps(free.report, allow_nan=False)


def test_complex_frames_are_recovered(film):
    rng = np.random.default_rng(1)
    frames = film * np.exp(1j * rng.normal(size=(1, H, 1)))
    result = recover(simulate(frames, kind="complex-gaussian", measurements=1.5), ranks=RANKS, real=False)
    assert result.report["error"]["total"] < 1e-4
    assert not result.report["notes"]


def test_intensities_weights_and_outliers(film, recording):
    squared = Recording(recording.y**2, A=recording.A, frames=film, intensity=True)
    assert recover(squared, ranks=RANKS).report["error"]["total"] < 1e-6
    spoiled = np.array(recording.y)
    spoiled[:, :4] = 100
    weights = np.ones_like(spoiled)
    weights[:, :4] = 0
    told = recover(Recording(spoiled, A=recording.A, frames=film, weights=weights), ranks=RANKS)
    assert told.report["error"]["total"] < 1e-6
    assert told.report["unexplained"]["total"] < 1e-6
    assert told.report["left_out"] == pytest.approx(4 / 42)
    wrong = simulate(film, measurements=2, outliers=0.05, seed=2)
    robust = recover(wrong, ranks=RANKS, robust=True)
    assert robust.report["error"]["total"] < 1e-6
    assert 0.03 < robust.report["left_out"] < 0.2


def test_the_truth_is_used_for_the_error_only(recording, result):
    blind = recover(Recording(recording.y, A=recording.A), ranks=RANKS)
    np.testing.assert_array_equal(blind.frames, result.frames)
    assert blind.report["error"] is None
    assert "truth" not in blind.report["film"]
    assert set(blind.report["pictures"][0]) == {"frame", "recovered"}
    assert "true frames" not in blind.summary()


def test_the_report_is_small_and_without_nan():
    rng = np.random.default_rng(0)
    film = np.einsum("kc,ic,jc->kij", *(rng.random((n, 1)) for n in (41, 70, 66)))
    recording = simulate(film, kind="coded-diffraction", measurements=0.01)
    report = recover(recording, ranks=(1, 1, 1), real=True, init="random", n_init=1, max_iter=1).report
    assert len(report["film"]["frames"]) == 40
    assert report["film"]["shape"] == [64, 64]
    assert len(report["pictures"]) == 4
    assert np.shape(report["pictures"][0]["truth"]) == (64, 64)
    assert len(json.dumps(report, allow_nan=False)) < 1_000_000


def test_volumes_have_no_pictures():
    rng = np.random.default_rng(0)
    film = np.einsum("kc,ic,jc,lc->kijl", *(rng.normal(size=(n, 1)) for n in (10, 4, 3, 2)))
    result = recover(simulate(film, measurements=1), ranks=(1, 1, 1, 1))
    assert result.report["error"]["total"] < 1e-6
    assert "film" not in result.report
    assert [mode["mode"] for mode in result.report["singular_values"]] == [
        "axis 1",
        "axis 2",
        "axis 3",
        "frames",
    ]


@pytest.mark.parametrize(("method", "ranks"), [("tucker", RANKS), ("lowrank", 2), ("rwf", "auto")])
def test_it_is_saved_and_loaded(recording, method, ranks, tmp_path):
    result = recover(recording, method=method, ranks=ranks, n_init=1, max_iter=10)
    result.save(tmp_path / "new")
    again = PhaseResult.load(tmp_path / "new")
    np.testing.assert_array_equal(again.frames, result.frames)
    assert (
        again.report == json.loads(json.dumps(result.report)) == read_json(tmp_path / "new" / "report.json")
    )
    assert type(again.model) is type(result.model)
    if again.model is not None:
        assert relative_error(np.asarray(again.model.frames_), result.frames) < 1e-12
    names = {path.name for path in (tmp_path / "new").iterdir()} - {"frames.gif"}
    assert names == {"frames.npy", "report.json"} | ({"model"} if method != "rwf" else set())


def test_an_animation_is_written_of_real_images(result, film, tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: no animation is written")
    result.save(tmp_path)
    with Image.open(tmp_path / "frames.gif") as shown:
        assert shown.n_frames == Q
        assert shown.size[0] >= 150
        first = np.asarray(shown.convert("L"), dtype=float)
    blocks = first[:: first.shape[0] // H, :: first.shape[1] // W]
    assert np.corrcoef(blocks.ravel(), result.frames[0].ravel())[0, 1] > 0.98
    spun = recover(simulate(film + 0j, kind="complex-gaussian", measurements=1), ranks=RANKS, max_iter=2)
    spun.save(tmp_path)  # complex frames over real ones
    assert not (tmp_path / "frames.gif").exists()


def test_warnings_of_the_fit_are_noted_and_handed_on(recording):
    with pytest.warns(LowdimWarning, match="too few to determine"):
        report = recover(recording, ranks=(5, 5, 12), n_init=1, max_iter=1).report
    assert any("too few to determine" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "magic"}, DataError, "method='magic' is unknown. Use one of tucker, lowrank, rwf"),
        ({"ranks": "many"}, RankError, "ranks='many' is no rank"),
        ({"ranks": 3}, RankError, "needs one rank per axis"),
        ({"ranks": (2, 2)}, RankError, "do not fit images (6, 7)"),
        ({"ranks": (9, 2, 2)}, RankError, "rank 9 of image axis 0 exceeds"),
        ({"method": "lowrank"}, RankError, "needs one rank"),
        ({"method": "lowrank", "ranks": (2, 2, 2)}, RankError, "needs one rank"),
        ({"method": "rwf", "ranks": (2, 2, 2)}, DataError, "has no ranks"),
        ({"method": "rwf", "robust": True}, DataError, "has no ranks, starts or robust weights"),
        ({"init": "lucky", "ranks": RANKS}, DataError, "init='lucky' is unknown"),
        ({"n_init": 0, "ranks": RANKS}, DataError, "n_init=0 must be an integer >= 1"),
        ({"max_iter": 0}, DataError, "max_iter=0 must be"),
        ({"real": False}, DataError, "a real A cannot tell"),
        ({"resume": True}, RunError, "need the output folder"),
    ],
)
def test_options_that_are_refused(recording, options, error, message, tmp_path):
    with pytest.raises(error) as caught:
        recover(recording, **options)
    assert message in str(caught.value)
    if "resume" not in options:
        with pytest.raises(error):
            recover(recording, **options, output=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_sources_that_are_refused(tmp_path):
    with pytest.raises(DataError, match="got a ndarray, expected a Recording"):
        recover(np.ones((3, 4)))
    with pytest.raises(DataError, match="does not exist"):
        recover(tmp_path / "none.npz")
    with pytest.raises(ShapeError, match="expected \\(frames, 3\\)"):
        recover(Recording(np.ones((2, 4)), A=np.ones((2, 3, 2, 2))))


class TestRun:
    def test_an_interrupted_run_goes_on_from_the_chosen_ranks(self, film, tmp_path, monkeypatch):
        recording, out = simulate(film, measurements=1.5, noise=0.02), tmp_path / "out"
        recording.save(tmp_path / "a.npz")
        whole = recover(tmp_path / "a.npz", max_iter=30)
        real = pipeline.fit

        def interrupted(*given, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recover(tmp_path / "a.npz", max_iter=30, output=out)
        assert read_json(out / "manifest.json")["status"] == "interrupted"
        assert not (out / "report.json").exists()
        monkeypatch.setattr(pipeline, "fit", real)
        with pytest.raises(RunError, match="already holds an unfinished run"):
            recover(tmp_path / "a.npz", max_iter=30, output=out)
        with pytest.raises(RunError, match="max_iter was 30 and is now 31"):
            recover(tmp_path / "a.npz", max_iter=31, output=out, resume=True)
        monkeypatch.setattr(pipeline, "choose", interrupted)
        result = recover(tmp_path / "a.npz", max_iter=30, output=out, resume=True)
        assert lasting(result.report) == lasting(whole.report)
        np.testing.assert_array_equal(result.frames, whole.frames)
        simulate(film, measurements=1.5, noise=0.02, seed=1).save(tmp_path / "a.npz")
        with pytest.raises(RunError, match="the input recording has changed"):
            recover(tmp_path / "a.npz", max_iter=30, output=out, resume=True)

    def test_finished_runs_are_read_and_restarts_leave_nothing_old(self, recording, tmp_path):
        options = {"output": tmp_path / "out", "n_init": 1, "max_iter": 5}
        first = recover(recording, ranks=RANKS, **options)
        written = (tmp_path / "out" / "frames.npy").stat().st_mtime_ns
        again = recover(recording, ranks=RANKS, **options, resume=True)
        assert (tmp_path / "out" / "frames.npy").stat().st_mtime_ns == written
        assert again.report == first.report
        recover(recording, method="rwf", **options, restart=True)
        assert not (tmp_path / "out" / "model").exists()
        assert PhaseResult.load(tmp_path / "out").model is None


def test_folders_that_hold_no_result(result, tmp_path):
    with pytest.raises(RunError, match="holds no report"):
        PhaseResult.load(tmp_path)
    result.save(tmp_path)
    np.save(tmp_path / "frames.npy", np.ones((2, 2)))
    with pytest.raises(RunError, match="incomplete or damaged"):
        PhaseResult.load(tmp_path)
    (tmp_path / "frames.npy").unlink()
    with pytest.raises(RunError, match="incomplete or damaged"):
        PhaseResult.load(tmp_path)
    atomic_json(tmp_path / "report.json", {**result.report, "format": 99})
    with pytest.raises(RunError, match="no report of `lowdim phase recover` in format 1"):
        PhaseResult.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        result.save(tmp_path / "file")


def test_single_frames_with_too_few_measurements_are_warned_of():
    recording = simulate(np.random.default_rng(0).normal(size=(4, 5, 5)), measurements=0.4)
    with pytest.warns(LowdimWarning, match="too few to determine"):
        result = recover(recording, method="rwf")
    assert any("too few" in note for note in result.report["notes"])


def test_numbers_of_numpy_are_options(recording, tmp_path):
    result = recover(
        recording, ranks=np.array(RANKS), seed=np.int64(1), n_init=1, max_iter=3, output=tmp_path / "out"
    )
    assert PhaseResult.load(tmp_path / "out").report["ranks"] == list(RANKS) == result.report["ranks"]
