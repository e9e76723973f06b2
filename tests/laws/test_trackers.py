"""What every streaming tracker must obey, over one table of all of them."""

import numpy as np
import pytest
from sklearn.base import clone

from lowdim.errors import DataError, RankError, RunError, ShapeError
from lowdim.track.grasta import Grasta
from lowdim.track.grouse import Grouse
from lowdim.track.petrels import Petrels
from lowdim.track.window import WindowSubspace

# Name -> how to make one, frames after which it has a planted subspace up to which error, and whether turning
# the coordinates of complete data turns the subspace (not where entries are weighed one by one).
TRACKERS = {
    "Grouse": (Grouse, 400, 1e-4, True),
    "Grouse, small steps": (lambda k, **kw: Grouse(k, step=0.05, **kw), 2000, 1e-4, True),
    "Petrels": (Petrels, 400, 1e-4, True),
    "Petrels, forgets soon": (lambda k, **kw: Petrels(k, forgetting=0.9, **kw), 400, 1e-4, True),
    "Grasta": (Grasta, 900, 1e-4, False),
    "Grasta, constant step": (lambda k, **kw: Grasta(k, step=0.002, **kw), 800, 5e-3, False),
    "WindowSubspace": (lambda k, **kw: WindowSubspace(k, window=20, **kw), 120, 1e-4, True),
}
# The wide first angles of an adaptive step multiply rounding errors: compared over these frames only.
BRIEF = {"Grasta": 8}
every = pytest.mark.parametrize("name", TRACKERS)
of_kinds = pytest.mark.parametrize("kind", [np.float64, np.complex128])

D, K = 12, 2


def make(name, **options):
    return TRACKERS[name][0](K, random_state=0, **options)


def frames(T=70, *, kind=np.float64, missing=0.0, noise=0.1, d=D, seed=0):
    """Frames near a fixed subspace, with gaps; and the subspace."""
    draw = np.random.default_rng(seed)

    def normal(*shape):
        x = draw.standard_normal(shape)
        return x + 1j * draw.standard_normal(shape) if kind is np.complex128 else x

    U = np.linalg.qr(normal(d, K))[0]
    X = normal(T, K) @ U.T + noise * normal(T, d)
    X[draw.random(X.shape) < missing] = np.nan
    return X, U


def comparable(name, T=70, **options):
    """Frames over which roundings of another kind leave the result as it is."""
    return frames(T, **options)[0][: BRIEF.get(name)]


def error(V, U):
    """Mean squared sine of the principal angles."""
    return 1 - np.linalg.norm(V.conj().T @ U) ** 2 / U.shape[1]


def apart(V, U):
    """Norm of what of V lies outside U: accurate where `error` is rounded to zero."""
    return np.linalg.norm(V - U @ (U.conj().T @ V))


@every
@of_kinds
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_row_by_row_is_all_at_once(name, kind, missing):
    X, _ = frames(kind=kind, missing=missing)
    whole, parts, single = make(name).fit(X), make(name), make(name)
    for part in np.split(X, [1, 4, 40]):
        parts.partial_fit(part)
    for x in X:
        single.learn_one(x)
    again = make(name).partial_fit(X[:9]).fit(X)
    for other in (parts, single, again, make(name).partial_fit(X)):
        np.testing.assert_array_equal(other.basis_, whole.basis_)
        assert other.n_seen_ == whole.n_seen_ == len(X)


@every
@of_kinds
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_a_trail_is_what_was_known_after_each_row(name, kind, missing):
    X, _ = frames(60, kind=kind, missing=missing)
    trail, tracker = make(name).track(X), make(name)
    for i, x in enumerate(X):
        tracker.learn_one(x)
        np.testing.assert_array_equal(trail.bases[i], tracker.basis_)
        np.testing.assert_allclose(trail.imputed[i], tracker.impute(x[None])[0], rtol=1e-6, atol=1e-8)
    assert np.array_equal(trail.imputed[~np.isnan(X)], X[~np.isnan(X)])


@every
@of_kinds
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_every_basis_is_orthonormal(name, kind, missing):
    X, _ = frames(220, kind=kind, missing=missing)
    bases = make(name).track(X).bases
    gram = bases.conj().mT @ bases
    assert np.abs(gram - np.eye(K)).max() < 1e-13


@every
@of_kinds
def test_another_basis_of_the_same_start_gives_the_same_subspaces(name, kind):
    X = comparable(name, kind=kind, missing=0.3)
    start, _ = frames(K, kind=kind, seed=1)
    turn = np.linalg.qr(frames(K, kind=kind, seed=2, d=K)[0])[0]
    one = make(name, init=start.T).fit(X).basis_
    other = make(name, init=start.T @ turn).fit(X).basis_
    assert apart(one, other) < 1e-7


@pytest.mark.parametrize("name", [name for name in TRACKERS if TRACKERS[name][3]])
@of_kinds
def test_turned_coordinates_turn_the_subspace(name, kind):
    X, _ = frames(kind=kind)
    start, _ = frames(K, kind=kind, seed=1)
    turn = np.linalg.qr(frames(D, kind=kind, seed=2)[0])[0]
    plain = make(name, init=start.T).fit(X).basis_
    turned = make(name, init=turn.T @ start.T).fit(X @ turn).basis_
    assert apart(turned, turn.T @ plain) < 1e-7


@every
def test_the_unit_of_the_data_does_not_matter(name):
    X = comparable(name, missing=0.3)
    if name == "Grouse, small steps":
        pytest.skip("a constant step is measured in units of the data")
    assert apart(make(name).fit(1e4 * X).basis_, make(name).fit(X).basis_) < 1e-7


@every
@of_kinds
def test_nan_is_mask(name, kind):
    X, _ = frames(kind=kind, missing=0.4)
    seen = ~np.isnan(X)
    hidden = np.where(seen, X, 1e9)
    one, other = make(name), make(name)
    np.testing.assert_array_equal(one.track(X).imputed, other.track(hidden, mask=seen).imputed)
    np.testing.assert_array_equal(one.basis_, other.basis_)
    np.testing.assert_array_equal(one.basis_, make(name).fit(hidden, mask=seen).basis_)
    np.testing.assert_array_equal(one.transform(X), one.transform(hidden, mask=seen))
    np.testing.assert_array_equal(one.impute(X), one.impute(hidden, mask=seen))
    np.testing.assert_array_equal(make(name).fit_transform(X), make(name).fit_transform(hidden, mask=seen))


@every
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_real_data_as_complex_numbers(name, missing):
    X = comparable(name, missing=missing)
    real, embedded = make(name).fit(X), make(name).fit(X + 0j)
    assert np.iscomplexobj(embedded.basis_)
    assert not np.iscomplexobj(real.basis_)
    assert apart(real.basis_, embedded.basis_) < 1e-7


@every
def test_a_phase_of_every_coordinate_is_taken_over(name):
    # With x -> diag(p) x the subspaces turn likewise, with gaps too: wrong conjugates would not survive.
    X = comparable(name, kind=np.complex128, missing=0.3)
    phase = np.exp(2j * np.pi * np.random.default_rng(3).random(D))
    start = frames(K, kind=np.complex128, seed=1)[0].T
    plain = make(name, init=start).fit(X).basis_
    turned = make(name, init=phase[:, None] * start).fit(X * phase).basis_
    assert apart(turned, phase[:, None] * plain) < 1e-7


@every
@pytest.mark.parametrize(("narrow", "kind"), [(np.float32, np.float64), (np.complex64, np.complex128)])
def test_single_precision_is_close_and_kept(name, narrow, kind):
    X = comparable(name, 120, kind=kind, missing=0.2)
    tracker = make(name).fit(X.astype(narrow))
    assert tracker.basis_.dtype == tracker.transform(X.astype(narrow)).dtype == narrow
    assert apart(tracker.basis_, make(name).fit(X).basis_) < 5e-3


@every
def test_the_seed_decides(name):
    X, _ = frames(5, missing=0.3)
    kind = TRACKERS[name][0]
    one, same, other = (kind(K, random_state=seed).fit(X).basis_ for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert apart(one, other) > 1e-6


@every
def test_a_row_without_entries_changes_nothing(name):
    X, _ = frames(40, missing=0.3)
    nothing = np.full((3, D), np.nan)
    plain = make(name).fit(X)
    paused = make(name).partial_fit(nothing).partial_fit(X[:9]).partial_fit(nothing)
    paused.learn_one(nothing[0]).partial_fit(np.vstack([nothing, X[9:], nothing]))
    paused.partial_fit(np.zeros((2, D)), mask=np.zeros((2, D), dtype=bool))
    np.testing.assert_array_equal(paused.basis_, plain.basis_)
    assert paused.n_seen_ == plain.n_seen_
    assert not paused.transform(nothing).any()


@every
@of_kinds
def test_frames_of_the_span_are_exact(name, kind):
    X, _ = frames(kind=kind, missing=0.3)
    tracker = make(name).fit(X)
    w, _ = frames(6, kind=kind, d=K, seed=5)
    Y = w @ tracker.basis_.T
    np.testing.assert_allclose(tracker.transform(Y), w, atol=1e-12)
    gaps = np.where(np.random.default_rng(6).random(Y.shape) < 0.3, np.nan, Y)
    np.testing.assert_allclose(tracker.transform(gaps), w, atol=1e-5)
    np.testing.assert_allclose(tracker.impute(gaps), Y, atol=1e-5)


@every
@pytest.mark.parametrize("missing", [0.0, 0.5])
@of_kinds
def test_finds_a_planted_subspace(name, missing, kind):
    _, T, bound, _ = TRACKERS[name]
    X, U = frames(T, kind=kind, missing=missing, noise=0.0, d=30)
    assert error(make(name).fit(X).basis_, U) < bound


@every
@of_kinds
def test_save_and_load_go_on_as_before(name, kind, tmp_path):
    X, _ = frames(kind=kind, missing=0.3)
    plain = make(name, init=frames(K, kind=kind, seed=1)[0].T).partial_fit(X[:37])
    plain.save(tmp_path / "model")
    loaded = type(plain).load(tmp_path / "model")
    assert loaded.n_seen_ == 37
    assert loaded.n_features_in_ == D
    assert repr(loaded.get_params()) == repr(plain.get_params())
    np.testing.assert_array_equal(plain.basis_, loaded.basis_)
    np.testing.assert_array_equal(plain.partial_fit(X[37:]).basis_, loaded.partial_fit(X[37:]).basis_)
    other = Petrels if isinstance(plain, Grouse) else Grouse
    with pytest.raises(RunError, match=type(plain).__name__):
        other.load(tmp_path / "model")


@every
def test_clone_has_the_options_and_no_state(name):
    tracker = make(name, ridge=1e-3).fit(frames()[0])
    copy = clone(tracker)
    assert copy.get_params() == tracker.get_params()
    assert not hasattr(copy, "basis_")


@every
def test_refusals(name):
    X, _ = frames(5)
    tracker = make(name).fit(X)
    with pytest.raises(ShapeError, match="12"):
        tracker.partial_fit(X[:, :3])
    with pytest.raises(ShapeError):
        tracker.transform(X[:, :3])
    with pytest.raises(RankError, match="n_components"):
        TRACKERS[name][0](D + 1).fit(X)
    with pytest.raises(RankError, match="fit"):
        make(name).fit(X).set_params(n_components=3).partial_fit(X)
    with pytest.raises(DataError, match="complex"):
        tracker.partial_fit(X + 1j)
    with pytest.raises(DataError, match="missing"):
        make(name).fit(np.full((3, D), np.nan))
    with pytest.raises(DataError, match="ridge"):
        make(name, ridge=0).fit(X)
    with pytest.raises(ShapeError, match="init"):
        make(name, init=np.eye(3)).fit(X)
    with pytest.raises(DataError, match="independent"):
        make(name, init=np.ones((D, K))).fit(X)
