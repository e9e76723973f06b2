"""Claims about subspaces that move: planted geodesics, a panning camera, a series with gaps."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from lowdim.claims.declare import Measurement, Trial, Unavailable, claim

if TYPE_CHECKING:
    import numpy as np

__all__: list[str] = []

PAPER = "Blocker, Raja, Fessler, Balzano, arXiv 2303.14851"
OWN = "own measurement; the extension to gaps is ours"
PLANTED = (
    "d = 100, k = 3, 200 frames of one vector, angles uniform in (0.3, 1) of 90 degrees, normal coefficients,"
    " noise of standard deviation 0.02."
)
ERROR = "mean squared sine of the angles to the true subspaces"


def planted(
    seed: int, *, d: int, k: int, frames: int, missing: float, noise: float = 0.02, complex_: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a geodesic, and noisy frames of it with NaN in their gaps.

    Returns the bases (frames, d, k) and the frames (frames, d).
    """
    import numpy as np

    Q, theta, _, X = _drawn(seed, d, k, frames, missing, noise, complex_)
    angle = np.linspace(0, 1, frames)[:, None, None] * theta
    return Q[:, :k] * np.cos(angle) + Q[:, k:] * np.sin(angle), X


def _drawn(
    seed: int, d: int, k: int, frames: int, missing: float, noise: float, complex_: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return Q, theta, coefficients and frames of `planted`."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        real = rng.normal(size=shape)
        return real + 1j * rng.normal(size=shape) if complex_ else real

    Q = np.linalg.qr(normal(d, 2 * k))[0]
    theta = (0.3 + 0.7 * rng.random(k)) * math.pi / 2
    angle = np.linspace(0, 1, frames)[:, None, None] * theta
    bases = Q[:, :k] * np.cos(angle) + Q[:, k:] * np.sin(angle)
    g = normal(frames, k)
    X = np.einsum("tdk,tk->td", bases, g) + noise * normal(frames, d)
    X[rng.random(X.shape) < missing] = np.nan
    return Q, theta, g, X


def distance(found: np.ndarray, true: np.ndarray) -> float:
    """Return the mean squared sine of the angles between two (series of) subspaces."""
    import numpy as np

    overlap = np.abs(np.einsum("...dk,...dl->...kl", found.conj(), true)) ** 2
    return float(np.mean(1 - overlap.sum((-2, -1)) / true.shape[-1]))


def at_rest(X: np.ndarray, k: int, *, ridge: float = 1e-6) -> Any:
    """Return the best subspace that does not move, fitted."""
    from lowdim.track import StaticSubspace

    return StaticSubspace(k, ridge=ridge).fit(X)


def _fitted(X: np.ndarray, k: int, **options: Any) -> Any:
    from lowdim.track import GeodesicSubspace

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few entries per frame are the point of these experiments
        return GeodesicSubspace(k, **options).fit(X)


def _planted_error(trial: Trial, missing: float, **options: Any) -> Measurement:
    true, X = planted(trial.seed, d=100, k=3, frames=200, missing=missing)
    model = _fitted(X, 3, **options)
    return Measurement(
        distance(model.basis(), true),
        {"static": distance(at_rest(X, 3).U_, true), "iterations": model.n_iter_},
    )


@claim(
    "track.complete",
    statement=f"A geodesic is found from complete noisy frames: {ERROR}",
    source=PAPER,
    setting=PLANTED,
    paper="accurate (figures without numbers known to us)",
    at_most=0.001,
    seeds=(0, 1, 2),
)
def complete(trial: Trial) -> Measurement:
    return _planted_error(trial, 0.0)


@claim(
    "track.missing-50",
    statement=f"The same with half of the entries missing: {ERROR}",
    source=OWN,
    setting=f"{PLANTED} 50 % missing at random.",
    at_most=0.003,
    seeds=(0, 1, 2),
)
def missing_50(trial: Trial) -> Measurement:
    return _planted_error(trial, 0.5)


@claim(
    "track.missing-80",
    statement=f"The same with four fifths of the entries missing: {ERROR}",
    source=OWN,
    setting=f"{PLANTED} 80 % missing at random.",
    at_most=0.008,
    seeds=(0, 1, 2),
)
def missing_80(trial: Trial) -> Measurement:
    return _planted_error(trial, 0.8)


@claim(
    "track.missing-85",
    statement=f"The same with 85 % of the entries missing: {ERROR}",
    source=OWN,
    setting=f"{PLANTED} 85 % missing at random.",
    at_most=0.015,
    seeds=(0, 1, 2),
)
def missing_85(trial: Trial) -> Measurement:
    return _planted_error(trial, 0.85)


@claim(
    "track.missing-90",
    statement=f"The same with nine tenths of the entries missing: {ERROR}",
    source=OWN + "; the threshold was a target that nobody had measured",
    setting=f"{PLANTED} 90 % missing at random: 2,000 numbers for 1,185 unknowns. Ridge 1e-2, averaged over"
    " 60 curves drawn from their distribution given the data. In the details least squares alone: a start"
    " from the true curve ends at the same loss, so a better search does not help it.",
    at_most=0.015,
    seeds=(0, 1, 2, 3, 4),
)
def missing_90(trial: Trial) -> Measurement:
    import numpy as np
    import torch

    from lowdim.track import Curve
    from lowdim.track.majorize import descend
    from lowdim.track.observations import Masked

    true, X = planted(trial.seed, d=100, k=3, frames=200, missing=0.9)
    model = _fitted(X, 3, ridge=1e-2, max_iter=2000)
    # Q and theta of the true curve, from its bases at both ends and half way.
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    start, end = torch.as_tensor(true[0]), torch.as_tensor(true[-1])
    cosine = (start.mT @ end).diagonal()
    theta = cosine.clamp(-1, 1).acos()
    oracle = Curve(torch.cat([start, (end - start * cosine) / theta.sin()], dim=1), theta)
    data = Masked(torch.as_tensor(np.nan_to_num(X)), torch.as_tensor(~np.isnan(X)))
    best = descend(data, t, oracle, ridge=1e-2, steps=2000)
    averaged = _fitted(X, 3, ridge=1e-2, max_iter=2000, draws=60, random_state=0)
    details = {
        "static": distance(at_rest(X, 3).U_, true),
        "expected from the draws": float(averaged.uncertainty_.mean()),
        "least squares": distance(model.basis(), true),
        "least squares from the truth": distance(best.curve.basis(t).numpy(), true),
        "objective": model.history_.objective[-1],
        "objective from the truth": best.history.objective[-1],
    }
    return Measurement(distance(averaged.basis(), true), details)


@claim(
    "track.missing-90-bound",
    statement="With nine tenths missing, the Cramer-Rao bound of that error for any unbiased method that"
    " estimates the coefficients of every frame with the curve, as least squares does",
    source="own derivation (lowdim.claims.bound)",
    setting="The draws of track.missing-90. In the details the bound for methods that may take the"
    " coefficients for standard normal and integrate over them, as averages over draws do; with 2,000"
    " numbers they are still far from it.",
    seeds=(0, 1, 2, 3, 4),
)
def missing_90_bound(trial: Trial) -> Measurement:
    import numpy as np

    from lowdim.claims.bound import cramer_rao

    Q, theta, g, X = _drawn(trial.seed, 100, 3, 200, 0.9, 0.02, False)
    t, seen = np.linspace(0, 1, 200), ~np.isnan(X)
    free, drawn = (cramer_rao(Q, theta, t, g, seen, noise=0.02, drawn=drawn) for drawn in (False, True))
    return Measurement(free, {"coefficients integrated out": drawn})


@claim(
    "track.over-others",
    statement="With 80 % missing, the smaller of the errors of the best subspace at rest and of GROUSE over"
    " the geodesic's, smallest of three seeds",
    source=OWN,
    setting=f"{PLANTED} 80 % missing at random.",
    at_least=10,
    unit="x",
)
def over_others(trial: Trial) -> Measurement:
    from lowdim.track import Grouse

    details, ratios = {}, []
    for seed in range(3):
        true, X = planted(seed, d=100, k=3, frames=200, missing=0.8)
        ours = distance(_fitted(X, 3).basis(), true)
        rest = distance(at_rest(X, 3).U_, true)
        grouse = distance(Grouse(3, random_state=seed).track(X).bases, true)
        details[f"seed {seed}"] = {"geodesic": ours, "static": rest, "grouse": grouse}
        ratios.append(min(rest, grouse) / ours)
    return Measurement(min(ratios), details)


@claim(
    "track.noiseless",
    statement="Noiseless complete frames are explained to round-off within 300 iterations: loss over energy",
    source=PAPER,
    setting="d = 40, k = 2, 40 frames.",
    at_most=1e-12,
    seeds=(0, 1, 2),
)
def noiseless(trial: Trial) -> Measurement:
    import numpy as np

    _, X = planted(trial.seed, d=40, k=2, frames=40, missing=0.0, noise=0.0)
    model = _fitted(X, 2, max_iter=300)
    return Measurement(model.loss_ / float(np.square(X).sum()), {"iterations": model.n_iter_})


@claim(
    "track.half-the-rank",
    statement="On a planted geodesic of rank 2 the geodesic of rank 2 explains everything, PCA needs rank 4:"
    " loss of the geodesic over that of PCA at rank 2",
    source=f"{PAPER}, demonstration of the official code",
    setting="d = 20, k = 2, one vector at each of 10 times, noiseless; ranks 1 to 5 in the details.",
    paper="0 against 0.95 (read off the plot)",
    at_most=1e-8,
    seeds=(0, 1, 2),
)
def half_the_rank(trial: Trial) -> Measurement:
    import numpy as np

    _, X = planted(trial.seed, d=20, k=2, frames=10, missing=0.0, noise=0.0)
    values = np.linalg.svd(X, compute_uv=False) ** 2
    geodesic = {k: float(_fitted(X, k, n_init=5, random_state=0).loss_) for k in range(1, 6)}
    pca = {k: float(values[k:].sum()) for k in range(1, 6)}
    details = {str(k): {"geodesic": geodesic[k], "pca": pca[k]} for k in geodesic}
    return Measurement(geodesic[2] / pca[2], details)


@claim(
    "track.complex",
    statement=f"Complex frames with 70 % missing: {ERROR}",
    source=OWN,
    setting="d = 60, k = 2, 150 frames, noise of 0.02 in both parts, coefficients normal in both parts.",
    at_most=0.004,
    seeds=(0, 1),
)
def complex_frames(trial: Trial) -> Measurement:
    true, X = planted(trial.seed, d=60, k=2, frames=150, missing=0.7, complex_=True)
    return Measurement(distance(_fitted(X, 2).basis(), true), {"static": distance(at_rest(X, 2).U_, true)})


def panning_camera() -> np.ndarray:
    """Return 80 frames (80, 576) of a window that slides over a photograph by three pixels."""
    import numpy as np

    try:
        from scipy.ndimage import shift
        from skimage.data import camera
        from skimage.transform import resize
    except ImportError as error:
        raise Unavailable("needs scikit-image, for its photograph (pip install 'lowdim[peers]')") from error
    image = resize(camera().astype(float) / 255, (128, 128), anti_aliasing=True)
    moved = [shift(image, (0, -s), order=3, mode="nearest")[40:64, 50:74] for s in np.linspace(0, 3, 80)]
    frames = np.stack(moved).reshape(80, -1)
    return (frames - frames.mean()) * (1 + 0.2 * np.sin(np.arange(80) / 7))[:, None]


def _relative(filled: np.ndarray, frames: np.ndarray, hidden: np.ndarray) -> float:
    import numpy as np

    return float(np.linalg.norm((filled - frames)[hidden]) / np.linalg.norm(frames[hidden]))


@claim(
    "track.camera",
    statement="Pixels that were hidden in the frames of a panning camera are filled in: relative error",
    source=OWN,
    setting="Photograph of scikit-image at 128 x 128, a window of 24 x 24 pixels that slides by 3 pixels over"
    " 80 frames, global mean subtracted, brightness times 1 + 0.2 sin(i / 7); half of the pixels hidden. k "
    "= 2.",
    at_most=0.03,
    seeds=(0, 1, 2),
)
def camera_pan(trial: Trial) -> Measurement:
    import numpy as np

    frames = panning_camera()
    details: dict[str, Any] = {}
    for share in (0.5,) if trial.quick else (0.5, 0.7, 0.8, 0.9, 0.95):
        hidden = np.random.default_rng(trial.seed).random(frames.shape) < share
        X = np.where(hidden, np.nan, frames)
        row = {"geodesic k=2": _relative(_fitted(X, 2).impute(X), frames, hidden)}
        for k in (2, 3, 4):
            row[f"static k={k}"] = _relative(at_rest(X, k).impute(X), frames, hidden)
        details[f"hidden {share:.0%}"] = row
    return Measurement(details["hidden 50%"]["geodesic k=2"], details)


@claim(
    "track.camera-static",
    statement="The same error over that of the best subspace at rest of the same rank",
    source=OWN,
    setting="As track.camera.",
    at_most=0.25,
    seeds=(0, 1, 2),
)
def camera_static(trial: Trial) -> Measurement:
    import numpy as np

    frames = panning_camera()
    hidden = np.random.default_rng(trial.seed).random(frames.shape) < 0.5
    X = np.where(hidden, np.nan, frames)
    ours = _relative(_fitted(X, 2).impute(X), frames, hidden)
    rest = _relative(at_rest(X, 2).impute(X), frames, hidden)
    return Measurement(ours / rest, {"geodesic": ours, "static": rest})


def carbon_dioxide() -> np.ndarray:
    """Return 43 years of 52 weeks of carbon dioxide over Mauna Loa, in ppm, with 59 gaps."""
    try:
        from statsmodels.datasets import co2
    except ImportError as error:
        raise Unavailable("needs statsmodels, for its CO2 series (pip install 'lowdim[peers]')") from error
    series = co2.load_pandas().data["co2"].to_numpy()
    return series[: 43 * 52].reshape(43, 52)


def _co2(seed: int) -> dict[str, float]:
    """Hide half of the series, fill it in by k = 1, and return the errors on it in ppm."""
    import numpy as np

    panel = carbon_dioxide()
    seen = ~np.isnan(panel)
    hidden = seen & (np.random.default_rng(seed).random(panel.shape) < 0.5)
    left = seen & ~hidden
    judged = hidden & (left.sum(1, keepdims=True) >= 2)
    X = np.where(left, panel, np.nan)

    def error(filled: np.ndarray) -> float:
        return float(np.sqrt(np.mean((filled - panel)[judged] ** 2)))

    found = {"geodesic k=1": error(_fitted(X, 1, ridge=1e-6).impute(X))}
    for k in (1, 2):
        found[f"static k={k}"] = error(at_rest(X, k, ridge=1e-6).impute(X))
    return found


@claim(
    "track.co2",
    statement="Half of a weekly CO2 series is filled in: root mean square error in ppm, largest of five"
    " draws",
    source=OWN,
    setting="Mauna Loa, 43 rows of 52 weeks, not centered, half of the entries hidden, k = 1.",
    at_most=0.55,
    unit=" ppm",
)
def co2_series(trial: Trial) -> Measurement:
    draws = {f"draw {seed}": _co2(seed) for seed in range(5)}
    return Measurement(max(draw["geodesic k=1"] for draw in draws.values()), draws)


@claim(
    "track.co2-static",
    statement="The same error over that of the best subspace at rest, largest of five draws",
    source=OWN,
    setting="As track.co2.",
    at_most=0.8,
)
def co2_static(trial: Trial) -> Measurement:
    draws = [_co2(seed) for seed in range(5)]
    return Measurement(max(draw["geodesic k=1"] / draw["static k=1"] for draw in draws))
