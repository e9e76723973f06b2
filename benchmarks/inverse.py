"""Inverse problems: calls and time of DCDP and its data consistency against the usual ways."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Options, Row, Table, interleave, ratio
from lowdim.claims.mixtures import natural
from lowdim.inverse import (
    DCDP,
    DPS,
    CircularBlur,
    Inpainting,
    Pooling,
    Problem,
    gaussian_kernel,
    prox,
    psnr,
)
from lowdim.inverse.consistency import norm_squared
from lowdim.inverse.digits import digits, digits_prior
from lowdim.inverse.patches import patches

NAME = "inverse"
DESCRIPTION = (
    "Image reconstruction, prior and operator the same within a row. DCDP against DPS, whose zeta is the best"
    " of six on 8 (digits: 24) other images: 40 natural patches of 16 x 16 and a mixture with exact denoiser;"
    " 16 digits and the U-Net that ships. Data consistency by proximal map against descent to the same mean"
    " residual: momentum with the steps of DCDP's code, and Adam at 1e-2 as in ReSample's. And what the loop"
    " of DCDP costs beside network and data consistency: the U-Net, 16 digits."
)
NOTES = (
    "Thresholds: DCDP 10 times fewer calls, forward only, and 8 times less time than DPS with 100 calls,"
    " forward and backward, at no smaller PSNR, on patches; proximal maps 5 times faster than both kinds of"
    " descent; overhead below 20 % of the network.",
    "Seconds of DPS with 1000 calls are of one run; others are the median of several, by turns, with"
    " quartiles.",
    "The row of digits has no threshold. DCDP's code has no tomography: momentum takes the longest safe step"
    " there, and conjugate gradients gain little beside it.",
)
SIGMA = 0.02
ZETAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""At 100 steps; the best is about 100 / steps."""


def run(options: Options) -> Table:
    rows = [
        _against_dps(options),
        _with_network(options),
        *(_consistency(name, *made, options=options) for name, made in _operators().items()),
        _overhead(options),
    ]
    return Table(NAME, DESCRIPTION, tuple(rows), NOTES)


def _tuned(prior: Any, images: Tensor, A: Any, *, steps: int) -> DPS:
    """Return DPS with the zeta that is best on `images`."""
    y = A.measure(images, sigma=SIGMA, seed=100)

    def quality(zeta: float) -> float:
        found = DPS(prior, steps=steps, zeta=zeta)(y, A, sigma=SIGMA, seed=100).image
        return float(psnr(found, images).mean())

    return DPS(prior, steps=steps, zeta=max((100 / steps * zeta for zeta in ZETAS), key=quality))


def _compared(
    case: str, x: Tensor, A: Any, ours: Any, solvers: dict[str, DPS], repeats: int
) -> tuple[Row, bool]:
    """Compare a solver of 10 calls with DPS; say whether it keeps what is asked of it."""
    y = A.measure(x, sigma=SIGMA, seed=0)
    everyone: dict[str, Any] = {"DCDP 10": ours, **solvers}
    found = {name: solver(y, A, sigma=SIGMA, seed=1) for name, solver in everyone.items()}
    quality = {name: float(psnr(one.image, x).mean()) for name, one in found.items()}
    times = interleave(
        {name: lambda s=everyone[name]: s(y, A, sigma=SIGMA, seed=1) for name in ("DCDP 10", "DPS 100")},
        repeats=repeats,
    )
    gain = ratio(times["DCDP 10"], other=times["DPS 100"])
    calls = found["DPS 100"].network_calls / found["DCDP 10"].network_calls
    told = ", ".join(
        f"{name}{f' (zeta {solvers[name].zeta:g})' if name in solvers else ''}: {value:.2f} dB"
        for name, value in quality.items()
    )
    faster = str(gain)
    if "DPS 1000" in found:
        faster += f"; than DPS 1000: {found['DPS 1000'].seconds / times['DCDP 10'].median:.0f}"
    figures = {"psnr": quality, "seconds": {n: t.seconds for n, t in times.items()}}
    row = Row(case, {"quality": told, "fewer calls": f"{calls:.0f}", "faster": faster}, figures)
    return row, calls >= 10 and gain.median >= 8 and quality["DCDP 10"] >= quality["DPS 100"]


def _against_dps(options: Options) -> Row:
    prior, A = natural(options.quick), Pooling(4)
    others = patches("test", count=8, seed=1)
    solvers = {f"DPS {steps}": _tuned(prior, others, A, steps=steps) for steps in (100, 1000)}
    ours = DCDP(prior, steps=10, t0=0.4)
    case = "DCDP against DPS, super-resolution x4, patches"
    row, met = _compared(case, patches("test", count=40), A, ours, solvers, options.repeats(7))
    return Row(row.case, row.cells, row.figures, met=met)


def _with_network(options: Options) -> Row:
    prior, A, x = digits_prior(), Pooling(2), digits("test")
    solvers = {"DPS 100": _tuned(prior, x[100:124], A, steps=100)}
    case = "DCDP without noise against DPS, super-resolution x2, digits"
    ours = DCDP.without_noise(prior, steps=10)
    return _compared(case, x[:16], A, ours, solvers, options.repeats(5))[0]


def _operators() -> dict[str, tuple[Any, float]]:
    """Return operators and the step of DCDP's code, as a multiple of 1 / ||A||^2.

    Its rates are of the mean over n numbers: twice the rate over n is the step, 1e3 for 196,608 and 1e3 for
    12,288 with ||A||^2 = 1/16, and 1e5 for blur. It has no tomography, which gets the longest safe one.
    """
    found: dict[str, tuple[Any, float]] = {
        "inpainting, 70 % missing": (Inpainting.random((16, 16), missing=0.7, seed=0), 2e3 / 196_608),
        "super-resolution x4": (Pooling(4), 2e3 / 12_288 / 16),
        "blur of 1.5 pixels": (CircularBlur(gaussian_kernel(1.5)), 2e5 / 196_608),
    }
    try:
        from lowdim.inverse.deepinv import tomography

        found["tomography, 6 directions, by conjugate gradients"] = (tomography((1, 16, 16), angles=6), 1.0)
    except ImportError:
        pass
    return found


def _momentum(problem: Problem, x: Tensor, step: float) -> Iterator[Tensor]:
    A, velocity = problem.operator, torch.zeros_like(x)
    while True:
        velocity = 0.9 * velocity - step * A.A_adjoint(A.A(x) - problem.y)
        x = x + velocity
        yield x


def _adam(problem: Problem, x: Tensor) -> Iterator[Tensor]:
    x = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=1e-2)
    while True:
        optimizer.zero_grad()
        problem.misfit(x).sum().backward()
        optimizer.step()
        yield x.detach()


def _consistency(name: str, A: Any, step: float, *, options: Options) -> Row:
    """Time the proximal map, and descent from the same images down to the same mean residual."""
    x = patches("test", count=40)
    x = x if A.value_range == (-1, 1) else (x + 1) / 2
    y = A.measure(x, sigma=SIGMA, seed=0)
    problem = Problem.of(y, A, sigma=SIGMA, image_shape=tuple(x.shape[1:]))
    start, rho = torch.zeros_like(x), problem.needed_sigma() ** 2 / 0.25
    reached = float(problem.residual(prox(problem, start, rho=rho).x).mean())
    length = step / norm_squared(problem)  # known beforehand: it is the same for all images
    descents = {"momentum": lambda: _momentum(problem, start, length), "Adam": lambda: _adam(problem, start)}
    steps = {kind: _steps_to(problem, reached, descent()) for kind, descent in descents.items()}
    calls: dict[str, Any] = {
        kind: lambda d=descent, n=steps[kind]: list(islice(d(), n)) for kind, descent in descents.items()
    }
    times = interleave({"prox": lambda: prox(problem, start, rho=rho), **calls}, repeats=options.repeats(7))
    gains = {kind: ratio(times["prox"], other=times[kind]) for kind in descents}
    return Row(
        case=f"data consistency, {name}",
        cells={
            "quality": f"residual {reached:.2g} sigma^2",
            "fewer calls": ", ".join(f"{kind}: {n} steps" for kind, n in steps.items()),
            "faster": ", ".join(f"than {kind} {gain}" for kind, gain in gains.items()),
        },
        figures={"seconds": {n: t.seconds for n, t in times.items()}, "steps": steps},
        met=min(gain.median for gain in gains.values()) >= 5,
    )


def _steps_to(problem: Problem, reached: float, descent: Iterator[Tensor], most: int = 2000) -> int:
    with torch.enable_grad():
        for count, x in enumerate(islice(descent, most), start=1):
            if float(problem.residual(x).mean()) <= reached:
                return count
    return most


def _overhead(options: Options) -> Row:
    prior, x, A = digits_prior(), digits("test")[:16], Pooling(2)
    y = A.measure(x, sigma=SIGMA, seed=0)
    solver = DCDP(prior, steps=20, t0=0.4)
    problem = Problem.of(y, A, sigma=SIGMA, prior=prior)

    def network() -> None:
        with torch.no_grad():
            for t in solver.times:
                prior.x0(x, t)

    def consistency() -> None:
        for _ in range(len(solver.times) + 1):
            prox(problem, x, rho=SIGMA**2)

    times = interleave(
        {"whole": lambda: solver(y, A, sigma=SIGMA, seed=0), "network": network, "prox": consistency},
        repeats=options.repeats(15),
    )
    rounds = zip(*(times[name].seconds for name in ("whole", "network", "prox")), strict=True)
    share = median((whole - net - fit) / net for whole, net, fit in rounds)
    return Row(
        case="overhead of the loop, U-Net of digits, batch 16",
        cells={
            "quality": f"{share:.1%} of the network's time",
            "fewer calls": None,
            "faster": None,
        },
        figures={"seconds": {n: t.seconds for n, t in times.items()}, "share": share},
        met=share <= 0.2,
    )
