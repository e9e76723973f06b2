import numpy as np
import pytest
from planted import distance, planted

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.track import GeodesicSubspace, PiecewiseGeodesicSubspace


@pytest.fixture(scope="module")
def two():
    """Two motions one after the other, of 80 frames each."""
    first, second = planted(0, frames=80, missing=0.2), planted(1, frames=80, missing=0.2)
    return first, second, np.concatenate([first[2], second[2]])


def test_knots_are_found_where_the_motion_changes(two):
    first, second, X = two
    model = PiecewiseGeodesicSubspace(2, max_segments=3, n_candidates=3).fit(X)
    assert model.knots_.tolist() == [80.0]
    assert min(model.criterion_, key=model.criterion_.get) == 2
    basis = model.basis()
    assert distance(basis[:80], first[0], first[1]) < 0.003
    assert distance(basis[80:], second[0], second[1]) < 0.003


def test_one_motion_gets_no_knot(two):
    X = two[0][2]
    model = PiecewiseGeodesicSubspace(2, max_segments=2, n_candidates=1).fit(X)
    assert model.knots_.size == 0
    np.testing.assert_array_equal(model.impute(X), GeodesicSubspace(2).fit(X).impute(X))


def test_given_knots_in_any_unit(two, tmp_path):
    X = two[2]
    t = 1900 + np.arange(160) / 12
    model = PiecewiseGeodesicSubspace(2, knots=[t[80]]).fit(X, t=t)
    assert len(model.pieces_) == 2
    order = np.random.default_rng(0).permutation(160)
    np.testing.assert_allclose(model.impute(X[order], t=t[order]), model.impute(X)[order])
    assert model.transform(X).shape == (160, 2)
    model.save(tmp_path / "m")
    again = PiecewiseGeodesicSubspace.load(tmp_path / "m")
    np.testing.assert_array_equal(again.impute(X), model.impute(X))
    with pytest.raises(RunError, match="holds a PiecewiseGeodesicSubspace"):
        GeodesicSubspace.load(tmp_path / "m")


def test_refusals(two):
    X = two[2]
    with pytest.raises(DataError, match=r"from 159 to inf holds 1 times, at least 2"):
        PiecewiseGeodesicSubspace(2, knots=[159]).fit(X)
    with pytest.raises(DataError, match="knots='all' is unknown"):
        PiecewiseGeodesicSubspace(2, knots="all").fit(X)
    model = PiecewiseGeodesicSubspace(1, knots=[80], max_iter=3).fit(X)
    with pytest.raises(ShapeError, match=r"5 rows, but the model was fitted to 160"):
        model.impute(X[:5])
