"""Claims of lowdim.dynamics: the learning rate recommended from a short probe against a grid of rates."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.trainings import OPTIMIZERS, TRAININGS, train, warm_up_and_cosine

if TYPE_CHECKING:
    from lowdim.dynamics import RateAdvice

SEEDS = (1, 2, 3)
"""Seeds of the grids. The method was calibrated on seed 0."""

BEGIN = 1e-3
"""Where the probe begins to look: PyTorch's default of SGD and Adam."""

LOWEST = {
    ("digits", "gradient descent"): 0.1,
    ("language", "Adam"): 1e-3 / 1.5**2,
    ("sentences", "Adam"): 1e-5 / 1.5**2,
    ("digits", "momentum"): 0.08,
    ("digits", "Adam"): 0.004,
}
"""The lowest of the eight learning rates of a grid; each one is 1.5 times the one before."""

QUESTION = (
    "A learning rate recommended from a probe of at most 5 % of the training is within a factor 2 of the best"
)
SOURCE = "aim of lowdim; rules of arXiv 2310.07831, 1812.06162 and 2003.02218"
GRID = (
    " Eight rates spaced by 1.5, best by the mean final loss over seeds 1, 2, 3; the probe begins at 0.001, "
    "once per seed; the value is the factor of the worst. Calibrated on seed 0"
)


@claim(
    "rates.digits",
    statement=f"{QUESTION}: full-batch gradient descent.",
    source=SOURCE,
    setting="tanh network 64-64-64-10, 300 digits, squared error, 2,000 steps at a constant rate."
    + GRID
    + ".",
    at_most=2.0,
    unit="x",
)
def digits(trial: Trial) -> Measurement:
    """Compare with the grid."""
    return _against_grid(trial, "digits", "gradient descent")


@claim(
    "rates.language",
    statement=f"{QUESTION}: GPT-2 from scratch.",
    source=SOURCE,
    setting="GPT-2 of 2 layers and width 64, bytes of WikiText-2, batches of 16 x 64, AdamW, 400 steps with "
    "warm-up and cosine; loss of 64 rows held out." + GRID + ".",
    at_most=2.0,
    unit="x",
)
def language(trial: Trial) -> Measurement:
    """Compare with the grid."""
    return _against_grid(trial, "language", "Adam")


@claim(
    "rates.sentences",
    statement=f"{QUESTION}: fine-tuning a sentence encoder.",
    source=SOURCE,
    setting="upper two layers of MiniLM, 512 pairs of the STS benchmark, batches of 8, AdamW, 300 steps with "
    "warm-up and cosine; loss of 64 pairs held out." + GRID + ".",
    at_most=2.0,
    unit="x",
)
def sentences(trial: Trial) -> Measurement:
    """Compare with the grid."""
    return _against_grid(trial, "sentences", "Adam")


@claim(
    "rates.digits-momentum",
    statement=f"{QUESTION}: full batches and momentum, which the method was not calibrated on.",
    source=SOURCE,
    setting="As rates.digits, with momentum 0.9." + GRID + " of other trainings.",
    unit="x",
)
def digits_momentum(trial: Trial) -> Measurement:
    """Compare with the grid."""
    return _against_grid(trial, "digits", "momentum")


@claim(
    "rates.digits-adam",
    statement=f"{QUESTION}: full batches and Adam, where no threshold is known at the start.",
    source=SOURCE,
    setting="As rates.digits, with AdamW." + GRID + ".",
    unit="x",
)
def digits_adam(trial: Trial) -> Measurement:
    """Compare with the grid."""
    return _against_grid(trial, "digits", "Adam")


def _against_grid(trial: Trial, name: str, kind: str) -> Measurement:
    """Return the factor between the worst recommended rate and the best of the grid."""
    seeds = SEEDS[:1] if trial.quick else SEEDS
    rates = [LOWEST[name, kind] * 1.5**k for k in range(8)]
    losses = [[final_loss(replace(trial, seed=seed), name, kind, lr) for seed in seeds] for lr in rates]
    means = [sum(math.inf if loss is None else loss for loss in row) / len(row) for row in losses]
    best = rates[means.index(min(means))]
    advice = [recommended(replace(trial, seed=seed), name, kind) for seed in seeds]
    factors = [max(found.lr / best, best / found.lr) for found in advice]
    nearest = [min(range(8), key=lambda k: abs(math.log(rates[k] / found.lr))) for found in advice]
    details = {
        "best": best,
        "recommended": [found.lr for found in advice],
        "cost": [found.cost / _steps(trial, name) for found in advice],
        "noise": [found.noise for found in advice],
        "grid": rates,
        "mean final loss": [mean if math.isfinite(mean) else None for mean in means],
        "mean final loss of the grid's rate nearest to the recommended one": [means[k] for k in nearest],
        "final losses": losses,
    }
    return Measurement(max(factors), details, judged=not trial.quick)


def final_loss(trial: Trial, name: str, kind: str, lr: float) -> float | None:
    """Train to the end and return the loss held out; None if it is not finite."""

    def run() -> dict[str, float | None]:
        training = TRAININGS[name](trial)
        optimizer = OPTIMIZERS[kind](training.model.parameters(), lr)
        loss = train(training, optimizer, steps=_steps(trial, name), whole=name == "digits")
        return {"loss": loss if math.isfinite(loss) else None}

    found: dict[str, float | None] = trial.share(f"rates-{name}-{kind.replace(' ', '-')}-{lr:.3g}", run)
    return found["loss"]


def recommended(trial: Trial, name: str, kind: str) -> RateAdvice:
    """Probe at the start of the training, with its first batches."""
    from lowdim.dynamics import recommend_rate

    training = TRAININGS[name](trial)
    full = name == "digits"
    return recommend_rate(
        training.model,
        (lambda: training.loss(training.whole)) if full else training.loss,
        optimizer=lambda lr: OPTIMIZERS[kind](training.model.parameters(), lr),
        lr=BEGIN,
        steps=_steps(trial, name),
        batches=None if full else map(training.draw, itertools.count()),
        schedule=None if full else warm_up_and_cosine,
        seed=trial.seed,
    )


def _steps(trial: Trial, name: str) -> int:
    """Return the length of a training; the shortest that a probe fits in where a quick run is wanted."""
    return STEPS[name] if not trial.quick else min(STEPS[name], 200)


STEPS = {"digits": 2_000, "language": 400, "sentences": 300}
