"""Claims about instruments: following the sharpness, the edge of stability, an alarm without a Hessian."""

from __future__ import annotations

import math
from typing import Any

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.trainings import OPTIMIZERS, TRAININGS, Training

__all__: list[str] = []

COHEN = "Cohen et al., ICLR 2021"
OWN = "own measurement"
DIGITS = (
    "64-64-64-10 tanh network, first N scikit-learn digits, half the squared error summed over classes,"
    " full-batch gradient descent at lr 0.2, 2,000 steps, a look every 25."
)


def _network(samples: int, bend: str, seed: int) -> Any:
    """Return model, inputs and labels of the digits experiments."""
    import torch
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x = torch.tensor(loaded.data[:samples] / 16 - 0.3, dtype=torch.float32)
    y = torch.tensor(loaded.target[:samples])
    torch.manual_seed(seed)
    kind = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[bend]
    layers = [torch.nn.Linear(64, 64), kind(), torch.nn.Linear(64, 64), kind(), torch.nn.Linear(64, 10)]
    return torch.nn.Sequential(*layers), x, y


def _descent(trial: Trial, samples: int) -> dict[str, Any]:
    """Train by gradient descent, and return the ratio of sharpness to threshold and the alternation."""

    def compute() -> dict[str, Any]:
        import torch

        from lowdim.dynamics import Monitor

        model, x, y = _network(samples, "tanh", trial.seed)
        target = torch.nn.functional.one_hot(y, 10).float()

        def loss() -> Any:
            return 0.5 * (model(x) - target).square().sum(1).mean()

        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        reports: list[tuple[int, float, float | None]] = []
        monitor = Monitor(
            model,
            loss,
            optimizer=optimizer,
            every=25,
            probes=("sharpness", "oscillation"),
            curvature={"tol": 1e-3},
            strict=True,
        )
        for step in range(1, (400 if trial.quick else 2_000) + 1):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            report = monitor.step()
            if report:
                score = report["dyn/alternation"]  # not a number at rest
                reports.append((step, report["dyn/sharpness_ratio"], None if math.isnan(score) else score))
        return {"reports": reports}

    return trial.share(f"dynamics-digits-{samples}", compute)


@claim(
    "dynamics.rises-to-the-edge",
    statement="Sharpness rises to what the learning rate can bear and stays there: distance of its mean "
    "ratio to"
    " the threshold, over the last ten looks, from the interval 0.95 to 1.10",
    source=COHEN,
    setting=f"{DIGITS} N = 300.",
    paper="at or just above 1 (qualitatively)",
    at_most=0,
    seeds=(0, 1, 2),
)
def rises(trial: Trial) -> Measurement:
    ratios = [ratio for _, ratio, _ in _descent(trial, 300)["reports"]]
    mean = sum(ratios[-10:]) / 10
    first = next((step for step, ratio, _ in _descent(trial, 300)["reports"] if ratio > 1), None)
    details = {"mean": mean, "largest": max(ratios), "first above": first}
    return Measurement(max(0.95 - mean, mean - 1.10, 0.0), details)


@claim(
    "dynamics.simple-tasks-stay-below",
    statement="A simple task never reaches the edge: largest ratio of sharpness to threshold",
    source="arXiv 2502.20531 (task complexity)",
    setting=f"{DIGITS} N = 5.",
    paper="below 1 (qualitatively)",
    at_most=0.9,
    seeds=(0, 1, 2),
)
def simple(trial: Trial) -> float:
    return max(ratio for _, ratio, _ in _descent(trial, 5)["reports"])


@claim(
    "dynamics.alternation-before",
    statement="Below the edge steps go straight on: largest mean alternation up to step 250",
    source=OWN,
    setting=f"{DIGITS} N = 300; alternation from sketches of the weights, mean over 25 steps.",
    at_most=-0.9,
    seeds=(0, 1, 2),
)
def alternation_before(trial: Trial) -> float:
    return max(score for step, _, score in _descent(trial, 300)["reports"] if step <= 250)


@claim(
    "dynamics.alternation-after",
    statement="Beyond the edge every step undoes the one before: mean alternation from step 425 on",
    source=OWN,
    setting=f"{DIGITS} N = 300; alternation from sketches of the weights, mean over 25 steps.",
    at_least=0.8,
    seeds=(0, 1, 2),
)
def alternation_after(trial: Trial) -> float:
    scores = [score for step, _, score in _descent(trial, 300)["reports"] if step > 400]
    return sum(scores) / len(scores) if scores else math.nan


def _looks(trial: Trial, case: str) -> dict[str, Any]:
    """Follow a training and compare every look with a long block Lanczos iteration."""

    def compute() -> dict[str, Any]:
        import torch

        from lowdim.algebra.spectrum import eigenpairs
        from lowdim.dynamics import SharpnessTracker, hessian

        bend, lr, steps = {"isolated": ("relu", 0.1, 400), "clustered": ("tanh", 0.6, 300)}[case]
        model, x, y = _network(300, bend, trial.seed)
        target = torch.nn.functional.one_hot(y, 10).float()

        def loss() -> Any:
            if case == "isolated":
                return torch.nn.functional.cross_entropy(model(x), y)
            return 0.5 * (model(x) - target).square().sum(1).mean()

        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        tracker = SharpnessTracker(model, loss, seed=trial.seed)
        products, errors = [], []
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            if step % 10 == 0:
                look = tracker.measure()
                with hessian(model, loss) as H:
                    exact = float(eigenpairs(H, count=2, tol=2e-4, seed=0).values[0])
                products.append(look.products)
                errors.append(abs(look.value / exact - 1))
        return {"products": products, "errors": errors}

    return trial.share(f"dynamics-looks-{case}", compute)


LOOKS = "64-64-64-10 network on 300 digits, a look every 10 steps, tolerance 1e-3, float32."
ISOLATED = f"{LOOKS} Cross entropy, ReLU, lr 0.1, 400 steps."
CLUSTERED = f"{LOOKS} Squared error, tanh, lr 0.6, 300 steps: at and above the edge."


def _mean_products(trial: Trial, case: str) -> Measurement:
    found = _looks(trial, case)
    products = found["products"]
    return Measurement(sum(products) / len(products), {"largest": max(products)})


def _share(trial: Trial, case: str, within: float) -> Measurement:
    errors = _looks(trial, case)["errors"]
    return Measurement(sum(e < within for e in errors) / len(errors), {"largest": max(errors)})


@claim(
    "dynamics.tracker-isolated",
    statement="Following an isolated top eigenvalue costs few Hessian products: mean per look",
    source=OWN,
    setting=ISOLATED,
    paper="power iteration (PyHessian) 15.4; eigsh more than 20",
    at_most=4,
    seeds=(0, 1, 2),
)
def tracker_isolated(trial: Trial) -> Measurement:
    return _mean_products(trial, "isolated")


@claim(
    "dynamics.tracker-isolated-right",
    statement="Looks at an isolated top eigenvalue that are within 1 %: share",
    source=OWN,
    setting=ISOLATED,
    at_least=1,
    seeds=(0,),
)
def tracker_isolated_right(trial: Trial) -> Measurement:
    return _share(trial, "isolated", 0.01)


@claim(
    "dynamics.tracker-clustered",
    statement="Following the top of a cluster at the edge costs few Hessian products: mean per look",
    source=OWN,
    setting=CLUSTERED,
    paper="power iteration (PyHessian) 22.4",
    at_most=10,
    seeds=(0, 1, 2),
)
def tracker_clustered(trial: Trial) -> Measurement:
    return _mean_products(trial, "clustered")


@claim(
    "dynamics.tracker-clustered-right",
    statement="Looks at the top of a cluster that are within 1 %: share",
    source=OWN,
    setting=CLUSTERED,
    at_least=0.9,
    seeds=(0, 1, 2),
)
def tracker_clustered_right(trial: Trial) -> Measurement:
    return _share(trial, "clustered", 0.01)


@claim(
    "dynamics.tracker-clustered-near",
    statement="Looks at the top of a cluster that are within 2.5 %: share",
    source=OWN,
    setting=CLUSTERED,
    at_least=1,
    seeds=(0,),
)
def tracker_clustered_near(trial: Trial) -> Measurement:
    return _share(trial, "clustered", 0.025)


def _watched(
    trial: Trial, training: Training, kind: str, lr: float, steps: int, *, every: int, whole: bool
) -> dict[str, Any]:
    """Train and return when Lanczos sees the threshold crossed, and when the alarm rings."""
    from lowdim.dynamics import Monitor

    trained = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[kind](trained, lr)
    crossed, largest = None, 0.0
    monitor = Monitor(
        training.model,
        lambda: training.loss(training.whole),
        optimizer=optimizer,
        every=every,
        probes=("sharpness", "oscillation"),
        curvature={"tol": 3e-3},  # the same far below the edge: this is what the alarm is held against
        seed=trial.seed,
        strict=True,
    )
    for step in range(steps):
        optimizer.zero_grad()
        training.loss(training.whole if whole else training.draw(step)).backward()
        optimizer.step()
        report = monitor.step()
        if report:
            ratio = report["dyn/sharpness_ratio"]
            largest = max(largest, ratio)
            if ratio > 1 and crossed is None:
                crossed = step + 1
    return {"crossed": crossed, "alarm": monitor.crossed_at, "largest ratio": largest}


def _verdict(found: dict[str, Any]) -> str:
    crossed, alarm = found["crossed"], found["alarm"]
    if crossed is None:
        return "rightly silent" if alarm is None else "false alarm"
    if alarm is None:
        return "miss"
    return "hit" if abs(alarm - crossed) <= 100 else "late" if alarm > crossed else "early"


#: (optimizer, learning rate, steps, steps between looks) of full-batch trainings.
CASES: dict[str, tuple[tuple[str, float, int, int], ...]] = {
    "digits": (
        *(("gradient descent", 0.05, 1_000, 20), ("gradient descent", 0.2, 600, 10)),
        *(("gradient descent", 0.6, 200, 10), ("momentum", 0.02, 800, 20), ("momentum", 0.2, 300, 10)),
        *(("Adam", 0.0003, 1_600, 20), ("Adam", 0.001, 500, 10), ("Adam", 0.003, 300, 10)),
    ),
    "language": (
        *(("gradient descent", 0.1, 200, 10), ("momentum", 0.01, 350, 10)),
        *(("Adam", 0.0003, 250, 10), ("Adam", 0.001, 250, 10)),
    ),
    "sentences": (
        *(("gradient descent", 0.05, 100, 10), ("momentum", 0.05, 150, 10)),
        *(("Adam", 0.00003, 150, 10), ("Adam", 0.0003, 100, 10)),
    ),
}


def _right(trial: Trial, name: str, *, whole: bool = True) -> Measurement:
    """Return the share of trainings of which the alarm tells the truth."""
    cases = CASES[name][:2] if trial.quick else CASES[name]
    details = {}
    for kind, lr, steps, every in cases:
        training = TRAININGS[name](trial)
        found = _watched(trial, training, kind, lr, steps, every=every, whole=whole)
        details[f"{kind}, lr {lr:g}"] = {**found, "verdict": _verdict(found)}
    good = [row["verdict"] in ("hit", "rightly silent") for row in details.values()]
    return Measurement(sum(good) / len(good), details)


ALARM = (
    "The alarm (alternation of order 2, four scores in a row above 0.7 and the weighted mean of 24 above "
    "0.85; chosen on seed 0) tells without a Hessian"
    " whether and within 100 steps when the sharpness crosses its threshold: share of trainings"
)


@claim(
    "dynamics.alarm-digits",
    statement=f"{ALARM} (digits, full batch)",
    source=OWN,
    setting="8 trainings: gradient descent, momentum 0.9 and Adam at two or three learning rates, some of "
    "which"
    " never cross.",
    at_least=0.9,
    seeds=(1, 2),
)
def alarm_digits(trial: Trial) -> Measurement:
    return _right(trial, "digits")


@claim(
    "dynamics.alarm-language",
    statement=f"{ALARM} (GPT-2 on WikiText-2, full batch)",
    source=OWN,
    setting="2 layers, width 64, 16 sequences of 64 bytes; 4 trainings: gradient descent, momentum 0.9, "
    "Adam at"
    " two learning rates.",
    seeds=(1,),
)
def alarm_language(trial: Trial) -> Measurement:
    return _right(trial, "language")


@claim(
    "dynamics.alarm-sentences",
    statement=f"{ALARM} (MiniLM on STS-B, full batch)",
    source=OWN,
    setting="Upper two layers, 32 pairs; 4 trainings: gradient descent, momentum 0.9, Adam at two learning "
    "rates.",
    seeds=(1,),
)
def alarm_sentences(trial: Trial) -> Measurement:
    return _right(trial, "sentences")


@claim(
    "dynamics.alarm-minibatch",
    statement=f"{ALARM} (digits, batches of 32)",
    source=OWN,
    setting="The trainings of dynamics.alarm-digits with batches of 32 drawn at random; sharpness of all "
    "digits.",
    seeds=(1,),
)
def alarm_minibatch(trial: Trial) -> Measurement:
    return _right(trial, "digits", whole=False)


@claim(
    "dynamics.adam-threshold",
    statement="Full-batch Adam hovers where its preconditioned sharpness is 38 / lr: distance of the mean "
    "ratio of"
    " the last ten looks from the interval 0.9 to 1.1",
    source="Cohen et al., arXiv 2207.14484",
    setting="300 digits, Adam at lr 1e-3 with betas 0.9 and 0.999, 1,500 steps, a look every 25.",
    paper="at 38 / lr (qualitatively)",
    at_most=0,
    seeds=(0, 1, 2),
)
def adam_threshold(trial: Trial) -> Measurement:
    from lowdim.dynamics import SharpnessTracker

    training = TRAININGS["digits"](trial)
    optimizer = OPTIMIZERS["Adam"](training.model.parameters(), 1e-3)

    def loss() -> Any:
        return training.loss(training.whole)

    tracker = SharpnessTracker(training.model, loss, optimizer=optimizer)
    ratios = []
    for step in range(1, (300 if trial.quick else 1_500) + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step % 25 == 0:
            ratios.append(tracker.measure().ratio or math.nan)
    mean = sum(ratios[-10:]) / 10
    return Measurement(max(0.9 - mean, mean - 1.1, 0.0), {"mean": mean, "largest": max(ratios)})
