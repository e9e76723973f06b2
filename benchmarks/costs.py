"""Costs: how the time of the methods on signals and subspaces grows with each size, as fitted exponents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import numpy as np
import torch

from benchmarks.harness import Options, Row, Table, curve
from lowdim.algebra.seeds import gaussian
from lowdim.algebra.tensors import Tucker
from lowdim.phase import TuckerPhaseRetrieval
from lowdim.regress import TensorRegressor
from lowdim.track import GeodesicSubspace

NAME = "costs"
DESCRIPTION = (
    "Time of a fixed number of iterations (ten sweeps of phase retrieval and of tensor regression, thirty "
    "iterations of the geodesic) while one size grows and the others stay; the fastest of three calls each. "
    "Exponent: slope of log time over log size. No peer."
)

Case = tuple[str, str, Iterable[int], Callable[[int], Callable[[], object]]]


def run(options: Options) -> Table:
    cut = 3 if options.quick else None
    cases: list[Case] = [
        ("phase", "frames q", (20, 40, 80, 160), lambda q: _phase(q=q)),
        ("phase", "pixels n", (144, 256, 576, 1024), lambda n: _phase(side=round(n**0.5))),
        ("phase", "measurements m", (128, 256, 512, 1024), lambda m: _phase(samples=m)),
        ("regress", "samples N", (400, 800, 1600, 3200, 6400), lambda N: _regress(N=N)),
        ("regress", "places", (256, 1024, 4096, 16384), lambda places: _regress(side=round(places**0.5))),
        ("track", "features d", (50, 100, 200, 400), lambda d: _track(d=d)),
        ("track", "components k", (1, 2, 4, 8), lambda k: _track(k=k)),
        ("track", "frames T", (100, 200, 400, 800), lambda T: _track(T=T)),
        ("track", "seen, % of the entries", (20, 40, 80), lambda seen: _track(missing=1 - seen / 100)),
    ]
    rows: list[Row] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten sweeps do not converge
        for system, size, sizes, prepare in cases:
            rows.append(curve(f"{system}, {size}", list(sizes)[:cut], prepare))
    notes = (
        "Defaults: phase q = 40, 16 x 16 pixels, m = 128, ranks (4, 4, 4); regress N = 400, 32 x 32, CP of "
        "rank 2; "
        "track d = 100, k = 3, T = 200, 30 % missing.",
    )
    return Table(NAME, DESCRIPTION, tuple(rows), notes)


def _phase(*, q: int = 40, side: int = 16, samples: int = 128) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return gaussian(shape, seed=generator, dtype=torch.float64)

    frames = Tucker(draw(4, 4, 4), (draw(side, 4), draw(side, 4), draw(q, 4))).dense().movedim(-1, 0)
    A = draw(q, samples, side, side)
    y = torch.einsum("kmij,kij->km", A, frames).abs()
    # From a random start: the spectral one has costs of its own.
    model = TuckerPhaseRetrieval((4, 4, 4), init="random", n_init=1, max_iter=10, tol=0)
    return lambda: model.fit(A, y)


def _regress(*, N: int = 400, side: int = 32) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(N, side, side)), rng.normal(size=N)
    return lambda: TensorRegressor(2, max_iter=10, tol=0).fit(X, y)


def _track(*, d: int = 100, k: int = 3, T: int = 200, missing: float = 0.3) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(d, 2 * k)))[0]
    angle = np.linspace(0, 1, T)[:, None, None]
    U = Q[:, :k] * np.cos(angle) + Q[:, k:] * np.sin(angle)
    X = np.einsum("tdk,tk->td", U, rng.normal(size=(T, k))) + 0.02 * rng.normal(size=(T, d))
    X[rng.random(X.shape) < missing] = np.nan
    return lambda: GeodesicSubspace(k, max_iter=30, tol=0).fit(X)
