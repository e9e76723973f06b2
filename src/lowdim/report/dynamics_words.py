"""The metrics of a watched training in words: what each is, its unit, and what it tells."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METRICS", "STATES", "Metric"]


class Metric(NamedTuple):
    """One metric as people read of it.

    Parameters
    ----------
    title : str
        Short, for headings and charts.
    unit : str
        Empty if it has none.
    meaning : str
        One or two sentences.
    """

    title: str
    unit: str
    meaning: str


METRICS = {
    "loss": Metric(
        "Loss", "that of the training", "Of the training, averaged over the steps since the last report."
    ),
    "lr": Metric(
        "Learning rate",
        "parameter\N{SUPERSCRIPT TWO} per loss",
        "Of the optimizer; of several groups, the largest.",
    ),
    "sharpness": Metric(
        "Sharpness",
        "loss per parameter\N{SUPERSCRIPT TWO}",
        "Largest eigenvalue of the Hessian of the loss on the probe batch: the curvature in the direction "
        "in which the loss bends most. With Adam and its kin it is that of the preconditioned Hessian.",
    ),
    "sharpness_raw": Metric(
        "Raw sharpness",
        "loss per parameter\N{SUPERSCRIPT TWO}",
        "Largest eigenvalue of the Hessian itself, where the sharpness is that of the preconditioned one.",
    ),
    "threshold": Metric(
        "Threshold",
        "as the sharpness",
        "The curvature that the optimizer bears at its learning rate: 2 / lr for gradient descent. In a "
        "direction of more curvature every step overshoots by more than it corrects.",
    ),
    "sharpness_ratio": Metric(
        "Sharpness ratio",
        "",
        "Sharpness over threshold. 1 is the edge of stability; with full batches training often rises to it "
        "and hovers there. With minibatches it usually stays below.",
    ),
    "sharpness_residual": Metric(
        "Residual of the sharpness",
        "as the sharpness",
        "How exact the look is: some eigenvalue lies within it of the sharpness, which is no larger than the "
        "true one.",
    ),
    "lowest_curvature": Metric(
        "Lowest curvature",
        "as the sharpness",
        "The smallest eigenvalue seen on the way to the largest: an upper bound of the true one. Negative "
        "away from minima.",
    ),
    "alternation": Metric(
        "Alternation score",
        "",
        "Minus the cosine between successive steps, averaged: \N{MINUS SIGN}1 where steps go on in one "
        "direction, +1 where each undoes the one before. It needs no Hessian.",
    ),
    "edge": Metric(
        "Edge alarm",
        "0 or 1",
        "1 if differences of successive steps undid each other several times in a row since the last report.",
    ),
    "period": Metric(
        "Period",
        "steps",
        "After so many steps the weights return to where they were: 1 at rest, 2 in an oscillation at the "
        "edge, 4 and 8 beyond it, 0 where they return to no earlier state.",
    ),
    "osc_rank": Metric("Oscillation rank", "directions", "In so many directions the weights oscillate."),
    "hvps": Metric("Hessian products", "", "Products of the Hessian with a vector, in one report."),
    "seconds": Metric("Probe time", "s", "What watching has taken since the last report."),
    "erank": Metric(
        "Effective rank of weights",
        "dimensions",
        "Exponential of the entropy of the singular values: how many directions a weight matrix really uses.",
    ),
    "srank": Metric(
        "Stable rank of weights",
        "dimensions",
        "Squared Frobenius norm over squared largest singular value: small directions hardly count.",
    ),
    "erank_grad": Metric("Effective rank of gradients", "dimensions", "The same of a layer's gradient."),
    "erank_update": Metric("Effective rank of updates", "dimensions", "The same of a layer's last step."),
    "drift_deg": Metric(
        "Drift",
        "degrees",
        "Largest angle between the leading singular subspaces of a layer now and at the first step: "
        "0 is the same subspace, 90 one with a new direction in it.",
    ),
    "balance_gap": Metric(
        "Balancing gap",
        "parameter\N{SUPERSCRIPT TWO}",
        "How far consecutive layers are from equal sizes. Small steps keep it in linear and ReLU layers; "
        "oscillation beyond the edge shrinks it.",
    ),
}
"""By the name after ``dyn/``; those of layers and chains without the layer."""

STATES = {
    "waiting": "No report yet",
    "diverged": "Diverged",
    "oscillating": "Oscillating",
    "above": "Above the edge",
    "edge": "At the edge",
    "near": "Near the edge",
    "below": "Below the edge",
    "unknown": "Not measured",
}
"""Where a training stands, in two or three words."""
