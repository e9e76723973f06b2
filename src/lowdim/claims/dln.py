"""Claims about deep linear networks: spectra, onset, amplitude and end of oscillations, balance, mixing."""

from __future__ import annotations

from typing import Any

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.minima import CASES, SPECTRA, dense_hessian, turned_minimum

__all__: list[str] = []

PAPER = "Ghosh, Kwon, Wang, Ravishankar, Qu, arXiv 2502.20531"
OWN = "derived here"
THREE = [10.0, 9.5, 9.0, 0.0, 0.0]
OFFICIAL = "s = (10, 9.5, 9, 0, 0), 3 layers, scale 0.01, aligned start, as in the official scripts."
TWO_STEPS = {0.0312: (1.4170, 0, 0), 0.0325: (3.3941, 0, 0), 0.034: (4.6084, 2.3626, 0)}
AMPLITUDES = TWO_STEPS | {0.036: (5.6954, 4.1293, 1.4623), 0.0363: (5.8280, 4.3149, 1.9349)}


@claim(
    "dln.spectrum",
    statement="The closed form of the Hessian's spectrum at the balanced minimum agrees with the Hessian:"
    " largest difference of an eigenvalue",
    source=f"{PAPER} (in part), the whole spectrum {OWN}",
    setting=f"{SPECTRA}; layers turned by random orthogonal matrices.",
    at_most=1e-10,
    seeds=(0, 1, 2),
)
def spectrum(trial: Trial) -> Measurement:
    import torch

    from lowdim.dynamics import dln

    misses = {}
    for depth, s in CASES:
        found = torch.linalg.eigvalsh(dense_hessian(turned_minimum(s, depth, trial.seed))).flip(0)
        formula = torch.zeros_like(found)
        formula[: len(s) ** 2] = dln.hessian_eigenvalues(s, depth=depth)
        misses[f"L={depth} s={s}"] = float((found - formula).abs().max())
    return Measurement(max(misses.values()), misses)


@claim(
    "dln.sharpness",
    statement="The sharpness of any minimum, from matrices of the size of the product, agrees with the"
    " Hessian: largest relative difference",
    source=f"Kamber, Parhi, arXiv 2509.25783; {OWN}",
    setting=f"{SPECTRA}; five random minima each, not balanced.",
    at_most=1e-10,
)
def sharpness(trial: Trial) -> Measurement:
    import torch

    from lowdim.dynamics import dln

    misses = {}
    for depth, s in CASES:
        for seed in range(5):
            layers = turned_minimum(s, depth, seed, uneven=0.3)
            found = float(torch.linalg.eigvalsh(dense_hessian(layers))[-1])
            misses[f"L={depth} s={s} seed={seed}"] = abs(float(dln.sharpness(layers)) / found - 1)
    return Measurement(max(misses.values()), misses)


def onsets(steps: int) -> dict[str, float]:
    """Learning rates from which on each singular value of the official setting oscillates, by sections.

    Three rounds of 40 learning rates for each of the three, all in one run.
    """
    import torch

    from lowdim.dynamics import dln

    predicted = dln.critical_lrs(THREE, depth=3).onset
    s = torch.tensor(THREE[:3], dtype=torch.float64)
    low, high = 0.98 * predicted, 1.02 * predicted
    for _ in range(3):
        grid = low + (high - low) * torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]  # (40, 3)
        run = dln.DeepLinear(THREE, depth=3).fit(grid.flatten(), steps=steps, record=("values",), last=2)
        values = run.values.reshape(40, 3, 2, 5)
        swing = (values[:, :, 1] - values[:, :, 0]).abs()[..., :3].diagonal(dim1=1, dim2=2)
        first = (swing > 1e-3 * s).int().argmax(0).clamp_min(1)
        low, high = grid.gather(0, first[None] - 1)[0], grid.gather(0, first[None])[0]
    found = (low + high) / 2
    return {f"s={s_i:g}": float(f / p - 1) for s_i, f, p in zip(s, found, predicted, strict=True)}


@claim(
    "dln.onset",
    statement="Singular value i oscillates from the learning rate 2 / S_i on: largest relative error of the"
    " prediction after 1,500 steps",
    source=f"{PAPER}, theorem 1",
    setting=f"{OFFICIAL} Oscillating: the last step changes it by more than 1e-3 of it.",
    at_most=5e-3,
)
def onset(trial: Trial) -> Measurement:
    errors = onsets(1500)
    return Measurement(max(map(abs, errors.values())), errors)


@claim(
    "dln.onset-long",
    statement="The same after 20,000 steps: what remained was the slowness near the edge",
    source=f"{PAPER}, theorem 1",
    setting=f"{OFFICIAL} Oscillating: the last step changes it by more than 1e-3 of it.",
    at_most=2e-4,
)
def onset_long(trial: Trial) -> Measurement:
    errors = onsets(20_000)
    return Measurement(max(map(abs, errors.values())), errors)


def _swings(trial: Trial) -> dict[str, Any]:
    """Last changes of the singular values, and rank of the last change, at five learning rates."""

    def measure() -> dict[str, Any]:
        import torch

        from lowdim.dynamics import dln

        run = dln.DeepLinear(THREE, depth=3).fit(
            list(AMPLITUDES), steps=1500, record=("values", "product"), last=2
        )
        change = run.product[:, 1] - run.product[:, 0]
        return {
            "swing": (run.values[:, 1] - run.values[:, 0]).abs()[:, :3].tolist(),
            "rank": torch.linalg.matrix_rank(change, atol=1e-3).tolist(),
        }

    return dict(trial.share("dln-swings", measure, seeded=False))


@claim(
    "dln.amplitude",
    statement="Oscillations have the amplitude of the closed form: largest relative error",
    source=f"{PAPER}, theorem 1; formulas {OWN}",
    setting=f"{OFFICIAL} Learning rates 0.0312, 0.0325, 0.034, 0.036, 0.0363; 1,500 steps.",
    at_most=1e-3,
)
def amplitude(trial: Trial) -> Measurement:
    from lowdim.dynamics import dln

    found, errors = _swings(trial)["swing"], {}
    for lr, swing in zip(AMPLITUDES, found, strict=True):
        wanted = dln.period2_orbit(THREE[:3], depth=3, lr=lr).amplitude
        errors[str(lr)] = max(
            abs(a / float(b) - 1) if b else abs(a) / s
            for a, b, s in zip(swing, wanted, THREE[:3], strict=True)
        )
    details = {"error": errors, "swing": dict(zip(map(str, AMPLITUDES), found, strict=True))}
    return Measurement(max(errors.values()), details)


@claim(
    "dln.rank",
    statement="The product of the layers differs between even and odd steps by a matrix whose rank is the"
    " number of i with lr > 2 / S_i: share of learning rates",
    source=f"{PAPER}, theorem 1",
    setting=f"{OFFICIAL} The five learning rates of dln.amplitude, ranks 1, 1, 2, 3, 3.",
    at_least=1,
)
def rank(trial: Trial) -> Measurement:
    from lowdim.dynamics import dln

    found = _swings(trial)["rank"]
    wanted = [dln.oscillation_rank(THREE, depth=3, lr=lr) for lr in AMPLITUDES]
    same = [a == b for a, b in zip(found, wanted, strict=True)]
    return Measurement(sum(same) / len(same), {"found": found, "predicted": wanted})


def doubling(L: int) -> float:
    """Where period 2 of the scalar map ends, in units of 2 / S, by roots and slopes of the map alone."""
    from scipy.optimize import brentq

    def slope(c: float) -> float:
        eta = c * 2 / L  # s = 1, so S = L

        def step(rho: float) -> float:
            return rho - eta * (rho**L - 1) * rho ** (L - 1)

        low = brentq(lambda rho: step(step(rho)) - rho, 0.3, 1 - 1e-3, xtol=1e-15)
        both = (low, step(low))
        slopes = [1 - eta * ((2 * L - 1) * rho ** (2 * L - 2) - (L - 1) * rho ** (L - 2)) for rho in both]
        return float(slopes[0] * slopes[1])

    return float(brentq(lambda c: slope(c) + 1, 1.05, 1.4, xtol=1e-13))


@claim(
    "dln.stability",
    statement="Period 2 ends at c_L 2 / S: largest difference of the closed form from the root of a"
    " bisection",
    source=OWN,
    setting="Depths 2 to 5; the orbit by bisection of f(f(rho)) - rho, the multiplier from its slopes.",
    at_most=1e-4,
)
def stability(trial: Trial) -> Measurement:
    from lowdim.dynamics import dln

    depths = range(2, 6)
    formula = {L: dln.stability_limit(L) for L in depths}
    found = {L: doubling(L) for L in depths}
    details = {f"L={L}": {"closed form": formula[L], "bisection": found[L]} for L in depths}
    return Measurement(max(abs(formula[L] - found[L]) for L in depths), details)


UNEQUAL = "Two scalar layers, s = 5, start (1.5, 2.25), 500 steps; the edge of stability is at 0.2."


def _gaps(trial: Trial) -> dict[str, Any]:
    """Gap after 500 steps at three learning rates, and the largest error of the identity on the way."""

    def measure() -> dict[str, Any]:
        from lowdim.dynamics import dln

        rates = [0.18, 0.1997, 0.21]
        net = dln.DeepLinear([5.0], depth=2, diagonal=True, init=[[1.5], [2.25]])
        run = net.fit(rates, steps=500, record=("factors",))
        d = run.factors[..., 0]  # (3, 501, 2)
        b = d[..., 1] ** 2 - d[..., 0] ** 2
        factor = dln.balance_contraction(d, s=5.0, lr=run.lr[:, None])[..., 0, 1]
        miss = (b[:, 1:] - factor[:, :-1] * b[:, :-1]).abs() / b[:, :1].abs()
        return {"gap": b[:, -1].abs().tolist(), "miss": float(miss.max())}

    return dict(trial.share("dln-gaps", measure, seeded=False))


@claim(
    "dln.balance-below",
    statement="Below the edge of stability the balancing gap stays: gap at learning rate 0.18",
    source=f"{PAPER}, proposition 2",
    setting=f"{UNEQUAL} The gap is 2.81 at the start.",
    at_least=2,
)
def balance_below(trial: Trial) -> Measurement:
    return Measurement(_gaps(trial)["gap"][0])


@claim(
    "dln.balance-near",
    statement="Just below it, where the loss goes down slowly in jumps, the gap shrinks in part: difference"
    " of the gap at 0.1997 from 0.437",
    source=OWN,
    setting=UNEQUAL,
    at_most=1e-3,
)
def balance_near(trial: Trial) -> Measurement:
    gap = _gaps(trial)["gap"][1]
    return Measurement(abs(gap - 0.437), {"gap": gap})


@claim(
    "dln.balance-above",
    statement="Beyond the edge of stability the layers become balanced: gap at learning rate 0.21",
    source=f"{PAPER}, proposition 2",
    setting=UNEQUAL,
    at_most=1e-8,
)
def balance_above(trial: Trial) -> Measurement:
    return Measurement(_gaps(trial)["gap"][2])


@claim(
    "dln.balance-identity",
    statement="Every step multiplies the gap by 1 - lr^2 (pi - s)^2: largest error relative to the first gap",
    source=f"{PAPER}, proposition 2",
    setting=f"{UNEQUAL} All three learning rates.",
    at_most=1e-12,
)
def balance_identity(trial: Trial) -> Measurement:
    return Measurement(_gaps(trial)["miss"])


#: Depth, singular values, and transverse multipliers at learning rates in units of 2 / S_1.
MIXING = (
    (3, [10.0, 9.5, 9.0], {1.03: 1.0, 1.06: 1.045}),
    (3, [10.0, 8.0, 6.0], {1.15: 1.0, 1.20: 1.067}),
    (2, [10.0, 9.5, 9.0], {1.01: 1.0, 1.03: 1.0086}),
    (3, [10.0, 5.0, 1.0], {1.24: 1.0}),
    (3, [10.0, 0.0, 0.0], {1.24: 1.0}),
)


@claim(
    "dln.mixing",
    statement="Multipliers of deviations that mix singular directions, over the two steps of an oscillation:"
    " 1 up to about 2 / lambda_12, larger beyond. Largest difference from the recorded ones",
    source=OWN,
    setting="Depths 2 and 3, s = (10, 9.5, 9), (10, 8, 6), (10, 5, 1), (10, 0, 0); recorded from the Hessian"
    " of the whole network.",
    at_most=2e-3,
)
def mixing(trial: Trial) -> Measurement:
    from lowdim.dynamics import dln

    details, misses = {}, []
    for L, s, recorded in MIXING:
        edge = float(dln.critical_lrs(s, depth=L).onset[0])
        for c, multiplier in recorded.items():
            found = float(dln.floquet(s, depth=L, lr=c * edge).transverse)
            details[f"L={L} s={s} {c}"] = found
            misses.append(abs(found - multiplier))
    return Measurement(max(misses), details)


@claim(
    "dln.mixing-rank2",
    statement="Oscillations of two or three singular values are unstable once weights are not exactly"
    " aligned: share of random spectra, learning rates and phases with a multiplier above 1",
    source=OWN + "; not in the paper, whose theorem is about aligned weights",
    setting="200 spectra of two or three values within 18 % of each other, depths 2 to 5, all phases.",
    at_least=1,
)
def mixing_rank2(trial: Trial) -> Measurement:
    from itertools import product

    import torch

    from lowdim.dynamics import dln

    source = torch.Generator().manual_seed(trial.seed)
    found: list[float] = []
    spectra = 0
    while spectra < (20 if trial.quick else 200):
        u = torch.rand(6, generator=source, dtype=torch.float64).tolist()
        depth, count = 2 + int(4 * u[0]), 2 + int(2 * u[1])
        s = sorted([10 * (1 - 0.18 * v) for v in u[2 : 2 + count]], reverse=True)
        rates = dln.critical_lrs(s, depth=depth)
        low, high = float(rates.onset[1]), float(rates.period4[0])
        if low >= high:
            continue
        spectra += 1
        lr = low + (0.001 + 0.999 * u[5]) * (high - low)
        p = dln.oscillation_rank(s, depth=depth, lr=lr)
        for phases in product((0, 1), repeat=p - 1):
            found.append(float(dln.floquet(s, depth=depth, lr=lr, phases=(0, *phases)).transverse))
    above = sum(multiplier > 1 + 1e-6 for multiplier in found)
    return Measurement(
        above / len(found), {"cases": len(found), "smallest": min(found), "largest": max(found)}
    )


def _random_starts(trial: Trial) -> dict[str, Any]:
    """Trainings from Gaussian starts at four learning rates: swing of s_1, spread over two steps, ends."""

    def measure() -> dict[str, Any]:
        from lowdim.dynamics import dln

        net = dln.DeepLinear(THREE, depth=3, init="gaussian", seed=[0, 1, 2])
        run = net.fit([0.0312, 0.0325, 0.034, 0.036], steps=8000, record=("values", "product"), last=3)
        swing = (run.values[..., 2, 0] - run.values[..., 1, 0]).abs()
        back = (run.product[..., 2, :, :] - run.product[..., 0, :, :]).norm(dim=(-2, -1))
        return {
            "swing": swing[0].tolist(),
            "returns": (back < 1e-6).tolist(),
            "diverged at": run.steps.where(run.diverged, -1).tolist(),
        }

    return dict(trial.share("dln-random-starts", measure, seeded=False))


RANDOM = "s = (10, 9.5, 9, 0, 0), 3 layers, Gaussian start of scale 0.01, 8,000 steps, seeds 0, 1, 2."


@claim(
    "dln.random-start",
    statement="From a random start, too, training reaches the oscillation of rank 1 with the predicted"
    " amplitude: largest relative error",
    source=f"{PAPER}, theorem 1; random start {OWN}",
    setting=f"{RANDOM} Learning rate 0.0312.",
    at_most=0.01,
)
def random_start(trial: Trial) -> Measurement:
    from lowdim.dynamics import dln

    wanted = float(dln.period2_orbit(THREE[0], depth=3, lr=0.0312).amplitude)
    found = _random_starts(trial)["swing"]
    return Measurement(max(abs(swing / wanted - 1) for swing in found), {"swing": found, "wanted": wanted})


@claim(
    "dln.random-start-leaves",
    statement="Beyond 2 / lambda_12 a random start does not reach the oscillation of the theorem: share of"
    " trainings that do not repeat after two steps, or diverge",
    source=OWN,
    setting=f"{RANDOM} Learning rates 0.0325, 0.034, 0.036, where the theorem has ranks 1, 2, 3.",
)
def random_start_leaves(trial: Trial) -> Measurement:
    found = _random_starts(trial)
    left = [not back for row in found["returns"][1:] for back in row]
    return Measurement(sum(left) / len(left), found)


#: Learning rates with the period that must be found, and the rank of the change in one step.
DETECTED = (
    (THREE, {0.03: (1, 0), 0.0312: (2, 1), 0.0325: (2, 1), 0.034: (2, 2), 0.036: (2, 3)}),
    (
        [10.0, 5.0, 1.0, 0.0, 0.0],
        {0.0312: (2, 1), 0.037: (2, 1), 0.0388: (4, 1), 0.0396: (4, 1), 0.0399: (4, 1), 0.041: (0, 1)},
    ),
)


@claim(
    "dln.detector",
    statement="The period of a training is told from sketches of its last 17 states, and the rank of its"
    " oscillation from the product: share of the learning rates where both are right",
    source=OWN,
    setting="s = (10, 9.5, 9, 0, 0) at 5 and (10, 5, 1, 0, 0) at 6 learning rates: periods 1, 2, 4 and none;"
    " 3 layers, aligned, 12,000 steps; 64 numbers of the 75 weights.",
    at_least=1,
)
def detector(trial: Trial) -> Measurement:
    import torch

    from lowdim.dynamics import dln
    from lowdim.dynamics.oscillation import period
    from lowdim.dynamics.sketch import ParameterSketch

    weights = [torch.zeros(5, 5, dtype=torch.float64) for _ in range(3)]
    sketch = ParameterSketch(weights, width=64, seed=trial.seed)
    details, right = {}, []
    for s, wanted in DETECTED:
        run = dln.DeepLinear(s, depth=3).fit(
            list(wanted), steps=12_000, record=("factors", "product"), last=17
        )
        for k, (lr, both) in enumerate(wanted.items()):
            states = []
            for factors in run.factors[k]:
                for W, d in zip(weights, factors, strict=True):
                    W.copy_(d.diag())
                states.append(sketch())
            change = run.product[k, -1] - run.product[k, -2]
            found = (period(torch.stack(states)), int(torch.linalg.matrix_rank(change, atol=1e-3)))
            details[f"s={s[:3]} lr={lr}"] = {"period": found[0], "rank": found[1]}
            right.append(found == both)
    return Measurement(sum(right) / len(right), details)
