"""Claims about in-context learning under a shift of subspaces: closed forms, trained models, adapters."""

from __future__ import annotations

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.prompts import ANGLES, FIVE, linear_tasks, train_linear, train_on_lines, train_small

__all__: list[str] = []

PAPER = "Kwon, Xu, Yaras, Balzano, Qu, AISTATS 2026 (arXiv 2505.14808)"
OWN = "own measurement"
DERIVED = "own derivation for the setting of the paper"
SIZES = "d = 20, r = 5, noise of standard deviation 0.1, subspaces drawn at random, standard normal inputs"
COUNTS = (1, 2, 4, 8)


def _curve(
    seed: int, angles: tuple[int, ...], *, trained: int, tested: int, subspaces: int = 1
) -> list[float]:
    """Return risks of the best weights for contexts of `trained` examples, at contexts of `tested`."""
    from lowdim.incontext import optimal_weights, risk

    tasks = linear_tasks(seed, subspaces=subspaces)
    W = optimal_weights(tasks.covariance, n=trained, noise=0.1)
    return [risk(W, covariance=tasks.rotated(angle).covariance, n=tested, noise=0.1) for angle in angles]


@claim(
    "incontext.weights",
    statement="The best weights of linear attention are c U U^T, c = n / (n + 1 + r + sigma^2): "
    "largest difference",
    source=DERIVED,
    setting=f"{SIZES}; n = 100",
    at_most=1e-12,
    seeds=(0, 1, 2),
)
def weights(trial: Trial) -> float:
    from lowdim.incontext import optimal_weights

    tasks = linear_tasks(trial.seed)
    W = optimal_weights(tasks.covariance, n=100, noise=0.1)
    c = 100 / (100 + 1 + 5 + 0.01)
    return float((W - c * tasks.covariance).abs().max())


@claim(
    "incontext.shift-values",
    statement="Risk at seven angles, for 100 and for 1000 examples at test: largest difference from "
    "tabled values",
    source=DERIVED,
    setting=f"{SIZES}; weights for n = 100",
    paper="a model of one subspace fails by an amount that depends on the angle",
    at_most=5e-5,
)
def shift_values(trial: Trial) -> Measurement:
    tabled = {
        100: (0.2835, 0.6143, 1.5183, 2.7532, 3.9880, 4.8920, 5.2229),
        1000: (0.0428, 0.3764, 1.2877, 2.5325, 3.7774, 4.6887, 5.0223),
    }
    found = {n: _curve(trial.seed, ANGLES, trained=100, tested=n) for n in tabled}
    gap = max(abs(a - b) for n in tabled for a, b in zip(found[n], tabled[n], strict=True))
    return Measurement(gap, {f"n {n}": values for n, values in found.items()})


@claim(
    "incontext.shift-sampled",
    statement="Risk on 20,000 prompts against the closed form: largest distance over seven angles, in "
    "standard errors",
    source=DERIVED,
    setting=f"{SIZES}; n = 100 at training and test",
    at_most=3.0,
    seeds=(0, 1, 2),
)
def shift_sampled(trial: Trial) -> Measurement:
    from lowdim.incontext import LinearAttention, evaluate, optimal_weights

    tasks = linear_tasks(trial.seed)
    model = LinearAttention(20).double()
    model.load_state_dict({"W": optimal_weights(tasks.covariance, n=100, noise=0.1)})
    prompts = 2_000 if trial.quick else 20_000
    table = evaluate(model, tasks, angles_deg=ANGLES, context_lengths=[100], prompts=prompts, seed=trial.seed)
    wide = table.pivot(index="angle_deg", columns="predictor", values="risk")
    errors = table[table["predictor"] == "model"].set_index("angle_deg")["se"]
    distance = ((wide["model"] - wide["theory"]).abs() / errors).max()
    return Measurement(float(distance), {"angles": list(ANGLES), "measured": wide["model"].tolist()})


@claim(
    "incontext.union-flat",
    statement="A model of two orthogonal subspaces has the same risk at every angle between them: "
    "spread over angles",
    source=PAPER,
    setting=f"{SIZES}; n = 50, 100, 1000, 10000 at training and test",
    paper="a union of subspaces covers all angles between them",
    at_most=1e-10,
    seeds=(0, 1, 2),
)
def union_flat(trial: Trial) -> float:
    curves = [_curve(trial.seed, FIVE, trained=n, tested=n, subspaces=2) for n in (50, 100, 1000, 10000)]
    return max(max(curve) - min(curve) for curve in curves)


@claim(
    "incontext.union-values",
    statement="Risks of models of one and of two subspaces, at 0 and at 45 degrees: largest difference from "
    "tabled values",
    source=DERIVED,
    setting=f"{SIZES}; n = 50, 100, 1000, 10000 at training and test",
    at_most=5e-5,
)
def union_values(trial: Trial) -> Measurement:
    tabled = {
        50: (0.9030, 0.5365, 2.9679),
        100: (0.4963, 0.2835, 2.7532),
        1000: (0.0545, 0.0299, 2.5273),
        10000: (0.0055, 0.0030, 2.5028),
    }
    found = {
        n: (
            _curve(trial.seed, (45,), trained=n, tested=n, subspaces=2)[0],
            *_curve(trial.seed, (0, 45), trained=n, tested=n),
        )
        for n in tabled
    }
    gap = max(abs(a - b) for n in tabled for a, b in zip(found[n], tabled[n], strict=True))
    price = {f"price at n {n}": two / one for n, (two, one, _) in found.items()}
    return Measurement(gap, {**price, **{f"n {n}": list(values) for n, values in found.items()}})


@claim(
    "incontext.union-outside",
    statement="Outside of the span of both subspaces risk stays that of predicting 0, or above (r = 5)",
    source=PAPER,
    setting=f"{SIZES}; n = 1000; turned by 90 degrees out of the span",
    paper="no generalization outside of the span",
    at_least=5.0,
    seeds=(0, 1, 2),
)
def union_outside(trial: Trial) -> float:
    from lowdim.incontext import optimal_weights, risk

    tasks = linear_tasks(trial.seed, subspaces=2)
    W = optimal_weights(tasks.covariance, n=1000, noise=0.1)
    outside = tasks.rotated(90, toward="outside", seed=trial.seed)
    return risk(W, covariance=outside.covariance, n=1000, noise=0.1)


TRAINED = (
    f"{SIZES}; n = 100; 3000 steps of Adam at 1e-2, falling along a cosine, 256 fresh prompts each, from 0"
)


@claim(
    "incontext.trained",
    statement="Trained linear attention has the risk of the closed form: largest relative difference "
    "over seven angles",
    source=DERIVED,
    setting=TRAINED,
    at_most=0.01,
    seeds=(0, 1, 2),
)
def trained(trial: Trial) -> Measurement:
    found = trial.share("incontext-trained", lambda: train_linear(trial.seed, trial.quick))
    return Measurement(found["gap"], found, judged=not trial.quick)


@claim(
    "incontext.trained-weights",
    statement="Trained linear attention has the weights of the closed form: relative distance",
    source=DERIVED,
    setting=TRAINED,
    at_most=0.08,
    seeds=(0, 1, 2),
)
def trained_weights(trial: Trial) -> Measurement:
    found = trial.share("incontext-trained", lambda: train_linear(trial.seed, trial.quick))
    return Measurement(found["distance"], judged=not trial.quick)


CASES = ((2000, 45), (2000, 90), (100, 45), (100, 90))
ADAPTED = f"{SIZES}; weights of the first subspace adapted to one at 45 or 90 degrees, n = 100 or 2000"


def _adapters(seed: int, n: int, angle: int, ranks: tuple[int, ...]) -> list[float]:
    """Return risks of the best updates."""
    from lowdim.incontext import best_low_rank_update, optimal_weights

    tasks = linear_tasks(seed)
    W, S = optimal_weights(tasks.covariance, n=n, noise=0.1), tasks.rotated(angle).covariance
    return [best_low_rank_update(W, covariance=S, n=n, noise=0.1, rank=rank).risk for rank in ranks]


@claim(
    "incontext.lora-values",
    statement="Risk of the best update of rank 0 to 5 and 10: largest difference from tabled values",
    source=DERIVED,
    setting=ADAPTED,
    at_most=5e-5,
)
def lora_values(trial: Trial) -> Measurement:
    tabled: dict[tuple[int, int], dict[int, float]] = {
        (2000, 45): {0: 2.5137, 1: 2.0152, 2: 1.5167, 3: 1.0182, 4: 0.5197, 5: 0.0212, 10: 0.0150},
        (2000, 90): {0: 5.0125, 5: 0.0274, 10: 0.0150},
        (100, 45): {0: 2.7532, 5: 0.3949, 10: 0.2835},
    }
    found = {case: _adapters(trial.seed, *case, tuple(values)) for case, values in tabled.items()}
    gap = max(abs(a - b) for case in tabled for a, b in zip(found[case], tabled[case].values(), strict=True))
    return Measurement(gap, {f"n {n}, {angle} degrees": values for (n, angle), values in found.items()})


def _shares(seed: int, rank: int) -> dict[str, float]:
    """Return the share of the excess over the best weights that an update removes."""
    found = {}
    for n, angle in CASES:
        before, after, best = _adapters(seed, n, angle, (0, rank, 10))
        found[f"n {n}, {angle} degrees"] = (before - after) / (before - best)
    return found


@claim(
    "incontext.lora-knee",
    statement="An update of rank r removes nearly all of the excess over weights trained anew: least share",
    source=DERIVED,
    setting=ADAPTED,
    paper="low-rank adapters capture the shift (first version, abstract)",
    at_least=0.94,
    seeds=(0, 1, 2),
)
def lora_knee(trial: Trial) -> Measurement:
    shares = _shares(trial.seed, 5)
    return Measurement(min(shares.values()), shares)


@claim(
    "incontext.lora-below",
    statement="An update of rank r - 1 does not: largest share",
    source=DERIVED,
    setting=ADAPTED,
    at_most=0.85,
    seeds=(0, 1, 2),
)
def lora_below(trial: Trial) -> Measurement:
    shares = _shares(trial.seed, 4)
    return Measurement(max(shares.values()), shares)


@claim(
    "incontext.lora-rank",
    statement="The best weights before and after a shift differ by a matrix of rank 2 r = 10: difference "
    "from 10",
    source=DERIVED,
    setting=ADAPTED,
    at_most=0,
)
def lora_rank(trial: Trial) -> Measurement:
    import torch

    from lowdim.incontext import optimal_weights

    tasks, ranks = linear_tasks(trial.seed), {}
    for n, angle in CASES:
        shifted = optimal_weights(tasks.rotated(angle).covariance, n=n, noise=0.1)
        gap = shifted - optimal_weights(tasks.covariance, n=n, noise=0.1)
        ranks[f"n {n}, {angle} degrees"] = int(torch.linalg.matrix_rank(gap, rtol=1e-10))
    return Measurement(max(abs(rank - 10) for rank in ranks.values()), ranks)


@claim(
    "incontext.lora-adam",
    statement="Adam on both factors of an update of rank 5 reaches the best one: largest excess of risk",
    source=DERIVED,
    setting=f"{ADAPTED}; 2000 steps at 2e-2, falling along a cosine, B = 0 and A ~ N(0, 1/d) at the start",
    at_most=1e-4,
)
def lora_adam(trial: Trial) -> Measurement:
    from lowdim.incontext import optimal_weights, train_low_rank_update

    tasks, excess = linear_tasks(trial.seed), {}
    for n, angle in CASES[:1] if trial.quick else CASES:
        W, S = optimal_weights(tasks.covariance, n=n, noise=0.1), tasks.rotated(angle).covariance
        found = train_low_rank_update(W, covariance=S, n=n, noise=0.1, rank=5, seed=trial.seed)
        excess[f"n {n}, {angle} degrees"] = found.risk - _adapters(trial.seed, n, angle, (5,))[0]
    return Measurement(max(excess.values()), excess)


SMALL = (
    "GPT-2 trunk of 2 layers, 2 heads, width 48, y a token of its own, weights that start at 0.08 "
    "(0.02, of GPT-2, times sqrt(768 / 48)); d = 4, r = 1, 10 examples, no noise; "
    "Adam at 3e-3, one cycle, 64 prompts per step, 2500 steps for one line and 4000 for two orthogonal ones; "
    "2000 prompts per angle; risk over r"
)


def _transformer(trial: Trial, lines: int) -> dict[str, float]:
    """Return risks by angle of the small transformer."""
    found: dict[str, float] = trial.share(
        f"incontext-transformer-{lines}", lambda: train_small(trial.seed, lines, trial.quick)
    )
    return found


def _at(found: dict[str, float], angle: int) -> float:
    return found[f"{angle} degrees, 10 examples"]


def _small(trial: Trial, lines: int, value: float) -> Measurement:
    return Measurement(value, _transformer(trial, lines), judged=not trial.quick)


@claim(
    "incontext.line-0",
    statement="A transformer trained on one line predicts on that line: risk",
    source=PAPER,
    setting=SMALL,
    at_most=0.03,
    seeds=(0, 1, 2),
)
def line_0(trial: Trial) -> Measurement:
    return _small(trial, 1, _at(_transformer(trial, 1), 0))


def _declare_line(angle: int, least: float) -> None:
    @claim(
        f"incontext.line-{angle}",
        statement=f"It fails on a line at {angle} degrees: risk",
        source=PAPER,
        setting=SMALL,
        paper="a model of one subspace fails by an amount that depends on the angle",
        at_least=least,
        seeds=(0, 1, 2),
    )
    def line(trial: Trial) -> Measurement:
        return _small(trial, 1, _at(_transformer(trial, 1), angle))


for _angle, _least in ((30, 0.25), (45, 0.5), (90, 0.8)):
    _declare_line(_angle, _least)


@claim(
    "incontext.lines-all",
    statement="A transformer trained on two orthogonal lines predicts at every angle between them: "
    "largest risk",
    source=PAPER,
    setting=SMALL,
    paper="a union of subspaces covers all angles between them",
    at_most=0.30,
    seeds=(0, 1, 2),
)
def lines_all(trial: Trial) -> Measurement:
    found = _transformer(trial, 2)
    return _small(trial, 2, max(_at(found, angle) for angle in FIVE))


@claim(
    "incontext.lines-all-paired",
    statement="The same where tokens of labels hold their inputs, too, in 1500 steps: largest risk",
    source=OWN,
    setting=SMALL,
    at_most=0.30,
    seeds=(0, 1, 2),
)
def lines_all_paired(trial: Trial) -> Measurement:
    found: dict[str, float] = trial.share(
        "incontext-transformer-paired", lambda: train_small(trial.seed, 2, trial.quick, tokens="paired")
    )
    return Measurement(max(_at(found, angle) for angle in FIVE), found, judged=not trial.quick)


@claim(
    "incontext.lines-between",
    statement="At 45 degrees, where nothing was trained, it is about as good as where it was: risk over the "
    "mean of those at 0 and 90 degrees",
    source=PAPER,
    setting=SMALL,
    at_most=1.5,
    seeds=(0, 1, 2),
)
def lines_between(trial: Trial) -> Measurement:
    found = _transformer(trial, 2)
    return _small(trial, 2, _at(found, 45) / ((_at(found, 0) + _at(found, 90)) / 2))


@claim(
    "incontext.lines-gain",
    statement="Risk at 90 degrees of the model of one line over that of the model of two lines",
    source=PAPER,
    setting=SMALL,
    at_least=5,
    seeds=(0, 1, 2),
)
def lines_gain(trial: Trial) -> Measurement:
    one, two = (_at(_transformer(trial, lines), 90) for lines in (1, 2))
    return Measurement(one / two, {"one line": one, "two lines": two}, judged=not trial.quick)


DIVERSITY = (
    "GPT-2 trunk of 4 layers, 4 heads, width 64, weights that start at 0.02, tokens of y that hold x; d = 8, "
    "lines (r = 1), mutually orthogonal in training, 12 examples, no noise; Adam at 2e-3, one cycle, 1400 "
    "steps of 64 prompts; 1000 prompts per angle. 12 trainings of 2 minutes of one core"
)


@claim(
    "incontext.diversity",
    statement="A transformer trained on 8 lines in place of 1: risk on lines in directions never seen, as a "
    "fraction of that of predicting 0 (for 1, 2, 4 and 8 training lines, and over angles, in the details)",
    source=OWN,
    setting=DIVERSITY,
    paper="more training subspaces generalize to their span (abstract)",
    seeds=(0, 1, 2),
)
def diversity(trial: Trial) -> Measurement:
    steps = 60 if trial.quick else 1400
    counts = (1, 8) if trial.quick else COUNTS
    found = {
        k: trial.share(f"incontext-diversity-{k}", lambda: train_on_lines(k, trial.seed, steps))  # noqa: B023
        for k in counts
    }
    details = {"angles": list(ANGLES), "counts": list(counts), "runs": [found[k] for k in counts]}
    return Measurement(found[8]["new"], details, judged=not trial.quick)
