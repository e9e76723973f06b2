"""Transition: every method is tried at every number of measurements, and tries that are done are kept."""

import numpy as np
import pytest

from lowdim.errors import DataError, RankError, RunError
from lowdim.phase import Transition, transition
from lowdim.runs import atomic_json, read_json

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")

OPTIONS = {"ranks": (2, 2, 2), "grid": [0.2, 1.0], "n_init": 1, "max_iter": 40}
LASTING = ["method", "measurements", "seed", "error", "unexplained"]


@pytest.fixture(scope="module")
def film():
    rng = np.random.default_rng(0)
    return np.einsum("kc,ic,jc->kij", *(rng.normal(size=(n, 2)) for n in (12, 6, 6)))


@pytest.fixture(scope="module")
def found(film):
    return transition(film, **OPTIONS, seeds=2)


def test_every_combination_is_tried(found):
    table = found.table
    assert len(table) == 3 * 2 * 2
    assert not table.duplicated(["method", "measurements", "seed"]).any()
    assert set(table["method"]) == {"tucker", "lowrank", "rwf"}
    assert (table["seconds"] > 0).all()


def test_the_tensor_needs_fewer_measurements_than_single_frames(found):
    wide = found.medians()
    assert list(wide.columns) == ["tucker", "lowrank", "rwf"]
    assert wide.loc[1.0, "tucker"] < 1e-4
    assert wide.loc[0.2, "tucker"] > 0.3
    assert wide.loc[1.0, "rwf"] > 0.3


def test_a_good_end_explains_the_magnitudes(found):
    exact = found.table[found.table["error"] < 1e-4]
    assert len(exact)
    assert (exact["unexplained"] < 1e-3).all()


def test_the_same_seeds_give_the_same_table(film, found):
    again = transition(film, **OPTIONS, seeds=[1], methods=["tucker"])
    kept = found.table.query("method == 'tucker' and seed == 1")[LASTING].reset_index(drop=True)
    assert again.table[LASTING].equals(kept)


def test_real_frames_behind_a_complex_map_are_recovered_as_real_ones(film):
    options = {**OPTIONS, "grid": [1.0], "methods": ["tucker"]}
    found = transition(film, **options, kind="coded-diffraction")
    assert found.table["error"][0] < 1e-3


def test_it_is_saved_and_loaded(found, tmp_path):
    found.save(tmp_path / "new")
    again = Transition.load(tmp_path / "new")
    assert again.table.equals(found.table)
    assert again.report == found.report
    assert len((tmp_path / "new" / "transition.csv").read_text().splitlines()) == 13
    atomic_json(tmp_path / "new" / "report.json", {**found.report, "format": 99})
    with pytest.raises(RunError, match="no report of `lowdim phase transition` in format 1"):
        Transition.load(tmp_path / "new")
    with pytest.raises(RunError, match="cannot be read"):
        Transition.load(tmp_path)


def test_an_interrupted_run_goes_on_after_the_tries_that_are_done(film, found, tmp_path):
    out = tmp_path / "out"
    told = []

    def interrupted(phase, done, total, text):
        told.append(text)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transition(film, **OPTIONS, seeds=2, output=out, progress=interrupted)
    assert told[0] == "tucker, m/n 0.2, seed 0"
    assert read_json(out / "manifest.json")["status"] == "interrupted"
    assert len(list((out / ".work").iterdir())) == 3
    atomic_json(out / ".work" / "1.json", {**read_json(out / ".work" / "1.json"), "seconds": 77.0})
    with pytest.raises(RunError, match="already holds an unfinished run"):
        transition(film, **OPTIONS, seeds=2, output=out)
    with pytest.raises(RunError, match="the input frames has changed"):
        transition(film + 1, **OPTIONS, seeds=2, output=out, resume=True)
    result = transition(film, **OPTIONS, seeds=2, output=out, resume=True)
    assert result.table["seconds"][1] == 77.0
    assert result.table[LASTING].equals(found.table[LASTING])
    assert {path.name for path in out.iterdir()} == {
        "transition.csv",
        "report.json",
        "manifest.json",
        ".lock",
    }
    again = transition(film, **OPTIONS, seeds=2, output=out, resume=True)
    assert again.table.equals(result.table)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ["magic"]}, DataError, "must be one or more of tucker, lowrank, rwf"),
        ({"methods": []}, DataError, "must be one or more of"),
        ({"grid": []}, DataError, "must be measurements per pixel"),
        ({"grid": [0.0]}, DataError, "must be measurements per pixel"),
        ({"seeds": 0}, DataError, "seeds=[] must be one or more"),
        ({"seeds": [-1]}, DataError, "0 or larger"),
        ({"rank": 2.5}, RankError, "needs one rank"),
        ({"max_iter": 0}, DataError, "max_iter=0"),
        ({"kind": "x-ray"}, DataError, "kind='x-ray' is unknown"),
        ({"ranks": (2, 2)}, RankError, "do not fit images"),
        ({"resume": True}, RunError, "need the output folder"),
    ],
)
def test_options_that_are_refused(film, options, error, message):
    with pytest.raises(error) as caught:
        transition(film, **{**OPTIONS, **options})
    assert message in str(caught.value)


def test_too_few_measurements_for_the_coefficients_are_a_row():
    frames = np.random.default_rng(0).normal(size=(8, 5, 5))
    found = transition(frames, ranks=(2, 2, 4), methods=["tucker"], grid=[0.1, 1.0], n_init=1, max_iter=3)
    assert found.table["error"].isna().tolist() == [True, False]


def test_ptychography_has_a_grid_of_its_own():
    frames = np.ones((4, 6, 6))
    found = transition(
        frames, ranks=(1, 1, 1), methods=["lowrank"], kind="ptychography", n_init=1, max_iter=2
    )
    assert found.table["measurements"].min() == 1
