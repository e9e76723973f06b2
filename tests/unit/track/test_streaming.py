"""Streaming trackers: small cases whose answer is known, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from lowdim.errors import DataError, Diverged, RunError, ShapeError
from lowdim.track.coefficients import fit_row, fit_rows, orthonormal, regressor
from lowdim.track.grasta import Grasta, least_deviations
from lowdim.track.grouse import Grouse, rotate, tidy
from lowdim.track.petrels import Petrels, gain
from lowdim.track.streaming import StreamingSubspace
from lowdim.track.window import WindowSubspace, refit


def normal(*shape, seed=0, kind=np.float64):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal(shape)
    return x + 1j * draw.standard_normal(shape) if kind is np.complex128 else x


of_kinds = pytest.mark.parametrize("kind", [np.float64, np.complex128])


# Coefficients.


@of_kinds
def test_coefficients_are_least_squares(kind):
    A, x = normal(7, 3, kind=kind), normal(7, seed=1, kind=kind)
    expected = np.linalg.lstsq(A, x, rcond=None)[0]
    np.testing.assert_allclose(fit_row(A, x, ridge=1e-12), expected, rtol=1e-9)
    np.testing.assert_allclose(regressor(A, ridge=1e-12) @ x, expected, rtol=1e-9)


@of_kinds
def test_coefficients_of_many_rows_are_those_of_each(kind):
    U = orthonormal(normal(8, 2, kind=kind))[0]
    rows = normal(5, 8, seed=1, kind=kind)
    seen = np.random.default_rng(2).random(rows.shape) < 0.6
    rows = np.where(seen, rows, 0)
    together = fit_rows(U, rows, seen, ridge=1e-6)
    for x, here, w in zip(rows, seen, together, strict=True):
        np.testing.assert_allclose(fit_row(U[here], x[here], ridge=1e-6), w, rtol=1e-9)


def test_coefficients_are_zero_where_the_basis_vanishes():
    assert not fit_row(np.zeros((2, 2)), np.ones(2), ridge=1e-8).any()


@of_kinds
def test_orthonormal_has_a_positive_diagonal(kind):
    D = normal(6, 3, kind=kind)
    Q, R = orthonormal(D)
    np.testing.assert_allclose(Q @ R, D, atol=1e-14)
    np.testing.assert_allclose(Q.conj().T @ Q, np.eye(3), atol=1e-14)
    assert (R.diagonal().real > 0).all()
    np.testing.assert_allclose(R.diagonal().imag, 0, atol=1e-15)


# GROUSE.


@of_kinds
def test_grouse_contains_a_complete_frame_afterwards(kind):
    x = normal(6, seed=3, kind=kind)
    U = Grouse(2, random_state=0).partial_fit(x[None]).basis_
    np.testing.assert_allclose(U @ (U.conj().T @ x), x, atol=1e-14)


def test_grouse_turns_by_the_angle_of_its_step():
    # p = (1, 0), r = (0, 2): the line turns by 0.1 * 1 * 2.
    tracker = Grouse(1, step=0.1, init=[[1.0], [0.0]]).partial_fit([[1.0, 2.0]])
    np.testing.assert_allclose(tracker.basis_[:, 0], [np.cos(0.2), np.sin(0.2)], atol=1e-15)


def test_grouse_regresses_on_what_is_seen():
    # On the seen entries (1, 2): w = 3 / sqrt 2, r = (-1/2, 1/2, 0).
    start = np.array([[1.0], [1.0], [0.0]])
    tracker = Grouse(1, init=start).partial_fit([[1.0, 2.0, np.nan]])
    np.testing.assert_allclose(tracker.basis_[:, 0], np.array([1, 2, 0]) / 5**0.5, atol=1e-7)


def test_grouse_stays_for_frames_in_or_orthogonal_to_the_subspace():
    U = np.eye(3)[:, :1].copy()
    for w, p, r in (([2.0], [2.0, 0, 0], [0.0, 0, 0]), ([0.0], [0.0, 0, 0], [0.0, 1, 0])):
        rotate(U, np.array(w), np.array(p), np.array(r), step=None)
    np.testing.assert_array_equal(U, np.eye(3)[:, :1])


def test_tidy_squares_the_defect():
    U = np.linalg.qr(normal(9, 3))[0] + 1e-6 * normal(9, 3, seed=1)
    assert np.abs(tidy(U).T @ tidy(U) - np.eye(3)).max() < 1e-10


# PETRELS.


@of_kinds
def test_gain_is_the_update_of_the_inverse(kind):
    T, w, f = normal(2, 2, 3, kind=kind), normal(2, seed=1, kind=kind), 0.9
    before = [T[:, :, m].conj().T @ T[:, :, m] for m in range(3)]
    rows = gain(T, w, forgetting=f)
    for m, P in enumerate(before):
        expected = np.linalg.inv(f * np.linalg.inv(P) + np.outer(w, w.conj()))
        np.testing.assert_allclose(T[:, :, m].conj().T @ T[:, :, m], expected, rtol=1e-9)
        np.testing.assert_allclose(rows[:, m], (expected @ w).conj(), rtol=1e-9)


@of_kinds
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_petrels_is_weighted_least_squares(kind, missing, monkeypatch):
    """Row m minimizes sum f^age |x - D_m w|^2 + f^n |D_m - start|^2 / prior over the w that were used."""
    import lowdim.track.petrels as module

    used = []
    original = module.fit_row
    monkeypatch.setattr(module, "fit_row", lambda *a, **kw: used.append(original(*a, **kw)) or used[-1])
    X = normal(20, 5, kind=kind)
    X[np.random.default_rng(1).random(X.shape) < missing] = np.nan
    f, prior = 0.9, 5.0
    tracker = Petrels(2, forgetting=f, prior=prior, random_state=0)
    start = tracker.partial_fit(np.full((1, 5), np.nan + 0 * X[0, 0]))._D.copy()
    tracker.partial_fit(X)
    seen = ~np.isnan(X)
    length = np.linalg.norm(X[0, seen[0]]) / seen[0].mean() ** 0.5
    W = np.array(used)
    for m in range(5):
        age = seen[::-1, m].cumsum()[::-1] - 1
        weights = (f**age * seen[:, m])[:, None]
        prior_weight = f ** seen[:, m].sum() / prior
        gram = W.T @ (weights * W.conj()) + prior_weight * np.eye(2)
        right = np.where(seen[:, m], X[:, m], 0) @ (weights * W.conj())
        right = right + prior_weight * length * start[:, m]
        np.testing.assert_allclose(tracker._D[:, m], np.linalg.solve(gram.T, right), rtol=1e-7)


def test_petrels_refresh_keeps_what_comes_next():
    X = normal(80, 6)
    X[np.random.default_rng(1).random(X.shape) < 0.2] = np.nan
    plain, tidied = (Petrels(2, random_state=0).partial_fit(X[:40]) for _ in range(2))
    tidied._refresh()
    a, b = (tracker.partial_fit(X[40:49]).basis_ for tracker in (plain, tidied))
    assert np.linalg.norm(a - b @ (b.T @ a)) < 1e-6


def test_petrels_survives_a_jump_and_silence():
    one, other = normal(2, 8, seed=1), normal(2, 8, seed=2)
    tracker = Petrels(2, forgetting=0.9, random_state=0).partial_fit(normal(300, 2, seed=3) @ one)
    tracker.partial_fit(np.zeros((2000, 8)))
    tracker.partial_fit(normal(600, 2, seed=4) @ other)
    U = np.linalg.qr(other.T)[0]
    assert np.linalg.norm(tracker.basis_ - U @ (U.T @ tracker.basis_)) < 1e-5


# GRASTA.


@of_kinds
def test_least_deviations_ignore_gross_errors(kind):
    A, w = normal(30, 2, kind=kind), normal(2, seed=1, kind=kind)
    x = A @ w
    x[:6] += 100
    found, y = least_deviations(A, x, rho=1.8, admm_steps=2000, ridge=1e-12)
    np.testing.assert_allclose(found, w, atol=1e-6)
    assert np.abs(y).max() < 1 + 1e-9
    np.testing.assert_allclose(A.conj().T @ y, 0, atol=1e-5)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_grasta_finds_the_subspace_under_outliers_that_ruin_grouse(missing):
    draw = np.random.default_rng(0)
    U = np.linalg.qr(normal(30, 2))[0]
    X = normal(1200, 2, seed=1) @ U.T
    X[draw.random(X.shape) < 0.1] += 5
    X[draw.random(X.shape) < missing] = np.nan
    wrong = {
        kind: 1 - np.linalg.norm(kind(2, random_state=0).fit(X).basis_.T @ U) ** 2 / 2
        for kind in (Grasta, Grouse)
    }
    assert wrong[Grasta] < 1e-3
    assert wrong[Grouse] > 0.1


# The sliding window.


@of_kinds
def test_window_of_complete_frames_is_their_singular_vectors(kind):
    X = normal(12, 6, kind=kind) * np.array([5, 4, 1, 1, 1, 1])
    tracker = WindowSubspace(2, window=8, sweeps=400, random_state=0).fit(X)
    U = np.linalg.svd(X[-8:].T, full_matrices=False)[0][:, :2]
    assert np.linalg.norm(U - tracker.basis_ @ (tracker.basis_.conj().T @ U)) < 1e-6


def test_window_forgets_what_left_it():
    first, second = normal(40, 5), normal(9, 5, seed=1)
    tracker = WindowSubspace(2, window=4, random_state=0).fit(np.vstack([first, second]))
    assert np.array_equal(tracker._rows, second[-4:])
    np.testing.assert_array_equal(WindowSubspace(1, window=1).fit(first)._rows, first[-1:])
    shorter = tracker.set_params(window=2).partial_fit(first[:1])
    np.testing.assert_array_equal(shorter._rows, np.vstack([second[-1:], first[:1]]))


def test_refit_never_fits_worse_and_keeps_a_solution():
    U, V = (orthonormal(normal(9, 2, seed=s))[0] for s in (0, 1))
    seen = np.random.default_rng(2).random((15, 9)) < 0.7
    rows = np.where(seen, normal(15, 2, seed=3) @ U.T + 0.1 * normal(15, 9, seed=4), 0)

    def loss(V):
        return (seen * (rows - fit_rows(V, rows, seen, ridge=1e-10) @ V.T) ** 2).sum()

    last = loss(V)
    for _ in range(30):
        V = refit(V, rows, seen, ridge=1e-10, damping=0.1)
        assert loss(V) <= last * (1 + 1e-9)
        last = loss(V)
    exact = np.where(seen, normal(15, 2, seed=3) @ U.T, 0)
    W = refit(U, exact, seen, ridge=1e-12, damping=0.1)
    assert np.linalg.norm(W - U @ (U.T @ W)) < 1e-9


# What all share.


def test_learn_one_takes_a_dict_in_the_order_of_the_first():
    tracker = Grouse(1, random_state=0).learn_one({"a": 1.0, "b": 2.0, "c": 3.0})
    tracker.learn_one({"c": 5.0, "a": 1.0}).learn_one({"b": None, "c": 1.0, "a": np.nan})
    rows = np.array([[1, 2, 3], [1, np.nan, 5], [np.nan, np.nan, 1]], dtype=float)
    np.testing.assert_array_equal(tracker.basis_, Grouse(1, random_state=0).fit(rows).basis_)
    assert list(tracker.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(DataError, match="'z'"):
        tracker.learn_one({"z": 1.0})
    with pytest.raises(DataError, match="strings or integers"):
        Grouse(1).learn_one({(1, 2): 1.0})
    with pytest.raises(DataError, match="names"):
        Grouse(1).fit(rows).learn_one({"a": 1.0})
    with pytest.raises(ShapeError, match="partial_fit"):
        tracker.learn_one(rows)


def test_tables_and_tensors_are_taken():
    X = normal(9, 3)
    table = pd.DataFrame(X, columns=["a", "b", "c"])
    expected = Grouse(1, random_state=0).fit(X).basis_
    tracker = Grouse(1, random_state=0).fit(table)
    np.testing.assert_array_equal(tracker.basis_, expected)
    np.testing.assert_array_equal(Grouse(1, random_state=0).fit(torch.as_tensor(X)).basis_, expected)
    assert list(tracker.get_feature_names_out()) == ["grouse0"]
    tracker.learn_one({"b": 1.0})
    assert tracker.n_seen_ == 10


def test_basis_is_a_copy():
    tracker = Grouse(1, random_state=0).fit(normal(4, 3))
    before = tracker.basis_
    kept = before.copy()
    tracker.partial_fit(normal(4, 3, seed=1))
    np.testing.assert_array_equal(before, kept)


def test_input_and_init_are_left_alone():
    X, start = normal(60, 4), np.linalg.qr(normal(4, 2))[0]
    X[0, 0] = np.nan
    copies = X.copy(), start.copy()
    for kind in (Grouse, Petrels, Grasta, WindowSubspace):
        kind(2, init=start).fit(X)
    np.testing.assert_array_equal(X, copies[0])
    np.testing.assert_array_equal(start, copies[1])


def test_transform_of_complex_frames_in_a_real_subspace():
    tracker = Grouse(1, init=[[1.0], [0.0]]).partial_fit([[1.0, 0.0]])
    np.testing.assert_allclose(tracker.transform([[2j, 5.0]]), [[2j]])


def test_overflow_is_told():
    with np.errstate(all="ignore"), pytest.raises(Diverged, match="Scale the data"):
        Petrels(1, random_state=0).fit(1e200 * normal(30, 4))


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (Grouse, {"step": 0.0}, "step"),
        (Petrels, {"forgetting": 1.5}, "forgetting"),
        (Petrels, {"prior": -1.0}, "prior"),
        (Grasta, {"rho": 0.0}, "rho"),
        (Grasta, {"admm_steps": 0}, "admm_steps"),
        (WindowSubspace, {"window": 0}, "window"),
        (WindowSubspace, {"sweeps": 1.5}, "sweeps"),
        (WindowSubspace, {"damping": 0.0}, "damping"),
    ],
)
def test_options_that_cannot_be_used(kind, options, text):
    with pytest.raises(DataError, match=text):
        kind(1, **options).fit(normal(4, 3))


def test_saved_names_and_settings_come_back(tmp_path):
    tracker = Petrels(1, forgetting=0.9, random_state=7).learn_one({"a": 1.0, "b": 2.0})
    tracker.save(tmp_path)
    loaded = Petrels.load(tmp_path).learn_one({"b": 1.0})
    assert loaded.forgetting == 0.9
    assert loaded.random_state == 7
    assert list(loaded.feature_names_in_) == ["a", "b"]


def test_unknown_formats_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(RunError):
        Grouse.load(tmp_path)
    Grouse(1, random_state=0).fit(normal(4, 3)).save(tmp_path)
    [header] = tmp_path.glob("*.json")
    facts = json.loads(header.read_text())
    facts["format"] = 99
    header.write_text(json.dumps(facts))
    with pytest.raises(RunError, match="99"):
        Grouse.load(tmp_path)


def test_the_base_class_is_no_tracker():
    with pytest.raises(TypeError):
        StreamingSubspace(1)
