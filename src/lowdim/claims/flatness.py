"""Claims about flatness: exact measures, initial scale, weights of one product, sensing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.minima import CASES, SPECTRA, dense_hessian, turned_minimum

if TYPE_CHECKING:
    from torch import Tensor

__all__: list[str] = []

OWN = "derived here"
KWON = "Kwon, Ding, Balzano, Qu, 2024 (small starts reach flat minima; its figures are not known to us)"


@claim(
    "flatness.exact",
    statement="Sharpness and trace of a minimum agree with the Hessian: largest relative difference",
    source=f"Kamber, Parhi, arXiv 2509.25783; {OWN}",
    setting=f"{SPECTRA}; balanced, and three random minima each.",
    at_most=1e-10,
)
def exact(trial: Trial) -> Measurement:
    import torch

    from lowdim.dynamics import flatness

    misses = {}
    for depth, s in CASES:
        for seed, uneven in ((0, 0.0), (0, 0.3), (1, 0.3), (2, 0.3)):
            layers = turned_minimum(s, depth, seed, uneven=uneven)
            values = torch.linalg.eigvalsh(dense_hessian(layers))
            found = flatness.at_minimum(layers)
            misses[f"L={depth} s={s} seed={seed} uneven={uneven}"] = max(
                abs(float(found.sharpness / values[-1]) - 1), abs(float(found.trace / values.sum()) - 1)
            )
    return Measurement(max(misses.values()), misses)


def sensing(seed: int) -> tuple[Tensor, Tensor]:
    """Draw a target (10, 10) of rank 2 and 70 Gaussian measurements of it."""
    import torch

    from lowdim.algebra.seeds import gaussian

    source = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(gaussian((10, 2), seed=source, dtype=torch.float64)).Q for _ in range(2))
    M = U @ torch.tensor([2.0, 1.0], dtype=torch.float64).diag() @ V.mT
    return M, gaussian((70, 10, 10), seed=source, dtype=torch.float64) / 70**0.5


@claim(
    "flatness.exact-sensing",
    statement="Where measurements of the product are seen, sharpness and trace from the Gram matrix of their"
    " gradients agree with the Hessian: largest relative difference",
    source=OWN,
    setting="10 x 10 of rank 2, 70 Gaussian measurements, 2 layers, trained from scale 0.5 to a loss below"
    " 1e-16.",
    at_most=1e-5,
    seeds=(0, 1, 2),
)
def exact_sensing(trial: Trial) -> Measurement:
    import torch

    from lowdim.dynamics import dln, flatness

    M, A = sensing(trial.seed)
    net = dln.DeepLinear(M, depth=2, init="gaussian", scale=0.5, seed=trial.seed, measurements=A)
    layers = net.fit(0.05, steps=60_000, tol=1e-16, record=()).layers
    found = flatness.at_minimum(layers, target=M, measurements=A)

    def loss(flat: Tensor) -> Tensor:
        W_1, W_2 = flat.view(2, 10, 10)
        return net.loss(W_2 @ W_1)

    values = torch.linalg.eigvalsh(torch.func.hessian(loss)(torch.cat([W.flatten() for W in layers])))
    misses = {
        "sharpness": abs(float(found.sharpness / values[-1]) - 1),
        "trace": abs(float(found.trace / values.sum()) - 1),
    }
    return Measurement(max(misses.values()), misses)


SCALES = {2: (1.5, 1.0, 0.7, 0.5, 0.35), 3: (1.2, 1.0, 0.7, 0.5, 0.35), 4: (1.0, 0.8, 0.6)}
SWEEP = (
    "10 x 10 with s = (3, 2, 1, 0, ...), Gaussian start, 8 seeds, lr 0.1 / S_1, until the loss is below 1e-8"
    " or 60,000 steps;"
)


def _sweep(trial: Trial) -> dict[str, Any]:
    """Medians over 8 seeds of the flatness reached from each scale, and slopes, for 2, 3 and 4 layers."""

    def measure() -> dict[str, Any]:
        import torch

        from lowdim.algebra.seeds import gaussian
        from lowdim.dynamics import flatness

        source = torch.Generator().manual_seed(0)
        U, V = (torch.linalg.qr(gaussian((10, 10), seed=source, dtype=torch.float64)).Q for _ in range(2))
        s = torch.tensor([3.0, 2.0, 1.0] + [0.0] * 7, dtype=torch.float64)
        found: dict[str, Any] = {}
        for depth, scales in SCALES.items():
            if trial.quick and depth > 2:
                continue
            sweep = flatness.sweep_init(U @ s.diag() @ V.mT, depth=depth, scales=scales, seeds=8)
            medians = sweep.medians()[["excess", "trace_ratio", "gap", "loss"]]
            found[str(depth)] = {name: column.tolist() for name, column in medians.items()}
            if depth < 4:
                found[str(depth)]["excess slope"] = sweep.slope("excess", 0.35, 0.7)
                found[str(depth)]["gap slope"] = sweep.slope("gap", 0.35, 0.7)
        return found

    return dict(trial.share("flatness-sweep", measure, seeded=False))


@claim(
    "flatness.scale-monotone",
    statement="The smaller the start, the flatter the minimum: share of depths at which the median excess"
    " sharpness falls with every smaller scale",
    source=KWON,
    setting=f"{SWEEP} 2 layers from scales 1.5 to 0.35, 3 from 1.2 to 0.35, 4 from 1 to 0.6.",
    at_least=1,
)
def scale_monotone(trial: Trial) -> Measurement:
    sweep = _sweep(trial)
    rising = [row["excess"] == sorted(row["excess"]) for row in sweep.values()]
    return Measurement(sum(rising) / len(rising), sweep)


@claim(
    "flatness.scale-excess",
    statement="The excess sharpness falls like the fourth power of the scale: largest difference of the"
    " log-log slope between 0.35 and 0.7 from 4",
    source=OWN,
    setting=f"{SWEEP} 2 and 3 layers.",
    at_most=0.5,
)
def scale_excess(trial: Trial) -> Measurement:
    slopes = {depth: row["excess slope"] for depth, row in _sweep(trial).items() if "excess slope" in row}
    return Measurement(max(abs(slope - 4) for slope in slopes.values()), slopes)


@claim(
    "flatness.scale-gap",
    statement="The balancing gap falls like the second power: largest difference of the slope from 2",
    source=OWN,
    setting=f"{SWEEP} 2 and 3 layers.",
    at_most=0.2,
)
def scale_gap(trial: Trial) -> Measurement:
    slopes = {depth: row["gap slope"] for depth, row in _sweep(trial).items() if "gap slope" in row}
    return Measurement(max(abs(slope - 2) for slope in slopes.values()), slopes)


@claim(
    "flatness.scale-small",
    statement="From scale 0.35 the minimum is nearly the flattest: largest median excess sharpness",
    source=OWN,
    setting=f"{SWEEP} 2 and 3 layers.",
    at_most=0.01,
)
def scale_small(trial: Trial) -> Measurement:
    excess = {depth: row["excess"][0] for depth, row in _sweep(trial).items() if "excess slope" in row}
    return Measurement(max(excess.values()), excess)


@claim(
    "flatness.sharp",
    statement="Of weights with one product the balanced ones are the flattest: smallest excess sharpness of"
    " 200 random ones",
    source="Ghosh, Kwon, Wang, Ravishankar, Qu, arXiv 2502.20531, lemma 4",
    setting=f"{SPECTRA}; 40 changes each by exp(0.1 N), N normal.",
    at_least=0,
)
def sharp(trial: Trial) -> Measurement:
    import torch

    from lowdim.algebra.seeds import gaussian
    from lowdim.dynamics import dln, flatness

    source = torch.Generator().manual_seed(trial.seed)
    found = {}
    for depth, s in CASES:
        turns = [
            0.1 * gaussian((40, len(s), len(s)), seed=source, dtype=torch.float64) for _ in range(depth - 1)
        ]
        layers = [W.expand(40, -1, -1) for W in dln.balanced_layers(s, depth=depth)]
        excess = flatness.at_minimum(flatness.reparameterize(layers, turns)).excess
        found[f"L={depth} s={s}"] = float(excess.min())
    return Measurement(min(found.values()), found)


TRACES = {
    (3, (5.0, 3.0, 1.0, 0.0)): 0.962,
    (3, (10.0, 9.5, 9.0, 0.0, 0.0)): 0.973,
    (4, (2.0, 1.0, 0.5)): 0.966,
    (4, (2.0, 1.0, 0.0, 0.0)): 0.921,
    (2, (5.0, 3.0, 1.0, 0.0)): 1.0,
}


@claim(
    "flatness.trace",
    statement="From three layers on, balanced weights have not the smallest trace of the Hessian: largest"
    " difference of the smallest over the balanced trace from the recorded one, which is 1 for two layers",
    source=OWN,
    setting="Depth 3 with s = (5, 3, 1, 0) and (10, 9.5, 9, 0, 0), 4 with (2, 1, 0.5) and (2, 1, 0, 0), 2"
    " with (5, 3, 1, 0): 0.962, 0.973, 0.966, 0.921, 1.",
    at_most=1e-3,
)
def smallest_trace(trial: Trial) -> Measurement:
    from lowdim.dynamics import dln, flatness

    details, misses = {}, []
    for (depth, s), recorded in TRACES.items():
        balanced = dln.balanced_layers(s, depth=depth)
        found = flatness.at_minimum(flatness.minimize_trace(balanced, seed=trial.seed))
        ratio = float(found.trace / dln.trace(balanced))
        details[f"L={depth} s={s}"] = {"trace": ratio, "excess sharpness": float(found.excess)}
        misses.append(abs(ratio - recorded))
    return Measurement(max(misses), details)


@claim(
    "flatness.trace-closed",
    statement="The smallest trace is L (m n)^(1/L) (sum of s)^(2 - 2/L): largest relative difference from a"
    " minimization over the weights",
    source="Gatmiry et al., arXiv 2306.13239 (the sum of singular values); formula derived here",
    setting="The five targets of flatness.trace, and random ones of 2 x 4, 4 x 2, 3 x 5 with 2 to 4 layers.",
    at_most=1e-6,
)
def trace_closed(trial: Trial) -> Measurement:
    import torch

    from lowdim.algebra.seeds import gaussian
    from lowdim.dynamics import dln, flatness

    random = [((2, 4), 2), ((2, 4), 3), ((4, 2), 3), ((3, 5), 4)]
    targets = [(depth, torch.tensor(s, dtype=torch.float64)) for depth, s in TRACES]
    targets += [(depth, gaussian(shape, seed=trial.seed, dtype=torch.float64)) for shape, depth in random]
    misses = {}
    for depth, M in targets:
        found = dln.trace(flatness.minimize_trace(dln.balanced_layers(M, depth=depth), seed=trial.seed))
        name = f"L={depth} {tuple(M.shape)} {float(M.norm()):.3f}"
        misses[name] = abs(float(found / flatness.smallest_trace(M, depth=depth)) - 1)
    return Measurement(max(misses.values()), misses)


SENSING = (
    "10 x 10 of rank 2 (s = 2, 1), 70 Gaussian measurements, 2 layers, lr 0.05, until the loss is below"
    " 1e-10 or 30,000 steps, scales 1.5, 1, 0.5, 0.2, 0.05; medians of 3 draws."
)


def _sensing(trial: Trial) -> dict[str, list[float]]:
    """Medians over three draws of sharpness, trace and error, scales ascending."""

    def measure() -> dict[str, list[float]]:
        import pandas as pd

        from lowdim.dynamics import flatness

        tables = []
        for seed in range(3):
            M, A = sensing(seed)
            sweep = flatness.sweep_init(
                M,
                depth=2,
                scales=(1.5, 1.0, 0.5, 0.2, 0.05),
                seeds=[seed],
                lr=0.05,
                tol=1e-10,
                steps=30_000,
                measurements=A,
            )
            tables.append(sweep.table)
        medians = pd.concat(tables).groupby("scale")[["sharpness", "trace", "error", "loss"]].median()
        return {str(name): column.tolist() for name, column in medians.items()}

    return dict(trial.share("flatness-sensing", measure, seeded=False))


@claim(
    "flatness.sensing-error",
    statement="With fewer measurements than entries, smaller starts find a product nearer the truth:"
    " relative error from scale 0.05",
    source="Ding et al., arXiv 2203.03756 (minima of small trace recover the truth)",
    setting=SENSING,
    at_most=0.12,
)
def sensing_error(trial: Trial) -> Measurement:
    found = _sensing(trial)
    return Measurement(found["error"][0], dict(found))


@claim(
    "flatness.sensing-monotone",
    statement="Error and trace fall with every smaller scale: share of the two",
    source="Ding et al., arXiv 2203.03756",
    setting=SENSING,
    at_least=1,
)
def sensing_monotone(trial: Trial) -> Measurement:
    found = _sensing(trial)
    return Measurement(sum(found[name] == sorted(found[name]) for name in ("error", "trace")) / 2)


@claim(
    "flatness.sensing-trace",
    statement="Trace of the Hessian from scale 1.5 over that from scale 0.05",
    source="Ding et al., arXiv 2203.03756",
    setting=SENSING,
    at_least=3,
    unit="x",
)
def sensing_trace(trial: Trial) -> Measurement:
    trace = _sensing(trial)["trace"]
    return Measurement(trace[-1] / trace[0])


@claim(
    "flatness.sensing-sharpness",
    statement="Sharpness from scale 1.5 over that from scale 0.05",
    source=KWON,
    setting=SENSING,
    at_least=2.5,
    unit="x",
)
def sensing_sharpness(trial: Trial) -> Measurement:
    sharpness = _sensing(trial)["sharpness"]
    return Measurement(sharpness[-1] / sharpness[0])
