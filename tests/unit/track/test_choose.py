import numpy as np
import pytest
from planted import planted

from lowdim.errors import DataError, RankError
from lowdim.track import compare
from lowdim.track.choose import hide


def test_motion_is_noticed():
    X = planted(0, frames=150, missing=0.2)[2]
    found = compare(X, n_components=[1, 2], held_out=0.2)
    assert found.moving
    assert found.gain[1] > 1
    assert (found.best["model"], found.best["n_components"]) == ("geodesic", 2)
    assert set(found.table["n_components"][found.table["model"] == "static"]) == {1, 2, 4}
    assert "The subspace moves" in found.sentence()


def test_rest_is_noticed():
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.normal(size=(30, 2)))[0]
    X = rng.normal(size=(150, 2)) @ U.T + 0.05 * rng.normal(size=(150, 30))
    found = compare(X, n_components=2)
    assert not found.moving
    static = found.table[(found.table["model"] == "static") & (found.table["n_components"] == 2)]
    # What was hidden is noise of 0.05 around the subspace.
    assert float(static["error"].iloc[0]) == pytest.approx(0.05, rel=0.1)
    assert "No motion is needed" in found.sentence()


def test_what_is_hidden_was_seen_and_rows_keep_enough():
    rng = np.random.default_rng(1)
    seen = rng.random((40, 12)) < 0.5
    hidden = hide(seen, 0.3, keep=4, random_state=0)
    assert not (hidden & ~seen).any()
    assert ((seen & ~hidden).sum(1) >= np.minimum(seen.sum(1), 4)).all()
    assert abs(hidden.sum() - 0.3 * seen.sum()) <= 1
    assert (hidden != hide(seen, 0.3, keep=4, random_state=1)).any()


def test_refusals():
    X = planted(0)[2]
    with pytest.raises(DataError, match="model 'spline' is unknown"):
        compare(X, models=["spline"])
    with pytest.raises(DataError, match=r"held_out=2 must be between"):
        compare(X, held_out=2)
    with pytest.raises(RankError, match="at most 15"):
        compare(X, n_components=16)
    with pytest.raises(DataError, match=r"only 0 entries can be hidden"):
        compare(X[:, :2], n_components=1)
