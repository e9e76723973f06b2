"""Claims about co-distillation of two policies, in the arithmetic world, and about its cost."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev
from typing import Any

from lowdim.claims.declare import Measurement, Trial, claim
from lowdim.claims.sums import cliff, from_copy, grpo_large, hybrid, small_alone, starts

__all__: list[str] = []

PAPER = "Kwon et al., CoDistill-GRPO, 2026"
OWN = "own measurement"
SIZES = (
    "two-digit sums in characters; decoders of 60,213 and 235,613 weights, warmed up on noisy answers; "
    "300 steps of 16 prompts, M = 14, G = 8, alpha = 1; accuracy at temperature 1, exact, on 1,000 held-out "
    "sums"
)
COPIED = f"{SIZES}; the small one a copy of the large one, every matrix cut to rank 12, healed in 100 steps"
SEEDS = (0, 1, 2)


@claim(
    "policy.large-learns",
    statement="The large policy learns from rollouts that it never wrote: sampled accuracy",
    source=PAPER,
    setting=SIZES,
    paper="training accuracy rises, at another scale",
    at_least=0.62,
    seeds=SEEDS,
)
def large_learns(trial: Trial) -> Measurement:
    row = hybrid(trial, "hybrid", continued=True)
    return Measurement(row["large sampled"], {"start": starts(trial), **row}, judged=not trial.quick)


@claim(
    "policy.continued",
    statement="Continued training of 75 steps brings the large policy near GRPO: sampled accuracy",
    source=PAPER,
    setting=f"{SIZES}; then 75 steps of GRPO on the large policy",
    paper="99 % of GRPO's accuracy (57.27 of 57.90), at another scale",
    at_least=0.80,
    seeds=SEEDS,
)
def continued(trial: Trial) -> Measurement:
    row = hybrid(trial, "hybrid", continued=True)["continued"]
    ratio = row["large sampled"] / grpo_large(trial)["large sampled"]
    return Measurement(row["large sampled"], {**row, "share of GRPO": ratio}, judged=not trial.quick)


@claim(
    "policy.grpo-ahead",
    statement="GRPO of the large policy on its own rollouts stays ahead without continued training: "
    "difference of sampled accuracies",
    source=PAPER,
    setting=SIZES,
    paper="57.90 against 53.13 to 53.74, at another scale",
    at_least=0.10,
    seeds=SEEDS,
)
def grpo_ahead(trial: Trial) -> Measurement:
    grpo, both = grpo_large(trial), hybrid(trial, "hybrid", continued=True)
    return Measurement(grpo["large sampled"] - both["large sampled"], {"grpo": grpo}, judged=not trial.quick)


@claim(
    "policy.small-learns",
    statement="The small policy learns: sampled accuracy",
    source=PAPER,
    setting=SIZES,
    at_least=0.42,
    seeds=SEEDS,
)
def small_learns(trial: Trial) -> Measurement:
    return Measurement(hybrid(trial, "hybrid", continued=True)["small sampled"], judged=not trial.quick)


@claim(
    "policy.k1-over-k3",
    statement="Distillation by the log ratio (k1) is better than by k3: difference of the small policy's "
    "greedy accuracies",
    source=PAPER,
    setting=SIZES,
    paper="k3 is less stable (figure 9)",
    at_least=0.03,
    seeds=tuple(range(6)),
)
def k1_over_k3(trial: Trial) -> Measurement:
    k1, k3 = hybrid(trial, "hybrid", continued=True), hybrid(trial, "k3")
    return Measurement(k1["small greedy"] - k3["small greedy"], {"k3": k3}, judged=not trial.quick)


@claim(
    "policy.all-zero",
    statement="Prompts without any right rollout, over those of GRPO with 8 (mostly an effect of 14 draws)",
    source=PAPER,
    setting=SIZES,
    paper="fewer zeros (figures 1 and 4)",
    at_most=0.6,
    seeds=SEEDS,
)
def all_zero(trial: Trial) -> Measurement:
    ours, theirs = hybrid(trial, "hybrid", continued=True)["all zero"], small_alone(trial, "grpo")["all zero"]
    return Measurement(ours / theirs, {"hybrid": ours, "grpo": theirs}, judged=not trial.quick)


@claim(
    "policy.small-gain",
    statement="The small policy's greedy accuracy minus that of GRPO with all 14 rollouts; also against "
    "GRPO with 8 and against PODS, and at temperature 1 (not reproduced at this scale)",
    source=PAPER,
    setting=SIZES,
    paper="+1.6 to +2.7 points over GRPO on average, at another scale",
    seeds=SEEDS,
)
def small_gain(trial: Trial) -> Measurement:
    both = hybrid(trial, "hybrid", continued=True)
    rows = {name: small_alone(trial, name) for name in ("grpo", "grpo-14", "pods")}
    details = {
        f"{kind} minus {name}": both[f"small {kind}"] - row[f"small {kind}"]
        for name, row in rows.items()
        for kind in ("greedy", "sampled")
    }
    return Measurement(details["greedy minus grpo-14"], {**details, "alone": rows}, judged=not trial.quick)


@claim(
    "policy.total-work",
    statement="Floating-point work of Hybrid-GRPO with continued training, over that of GRPO of the large "
    "policy (no saving at this scale; generation alone in the details)",
    source=PAPER,
    setting=SIZES,
    paper="18 % less wall-clock time, at another scale, where decoding dominates",
    seeds=SEEDS,
)
def total_work(trial: Trial) -> Measurement:
    both, grpo = hybrid(trial, "hybrid", continued=True), grpo_large(trial)
    ratio = {
        name: (both[name] + both["continued"][name]) / grpo[name] for name in ("work", "generated", "seconds")
    }
    return Measurement(ratio["work"], {**ratio, "GRPO on the way": grpo["way"]}, judged=not trial.quick)


@claim(
    "policy.cliff",
    statement="Learning cliff: a small policy that is right in 4.5 % of its rollouts only learns nothing and "
    "damages the large one; the large policy's sampled accuracy, from .45 (the guard's step in the details)",
    source=OWN,
    setting=f"{SIZES}; the small one warmed up to .045 only; the guard asked every 10 steps",
    paper="none; the method needs a small policy that succeeds now and then",
    seeds=SEEDS,
)
def learning_cliff(trial: Trial) -> Measurement:
    row = cliff(trial)
    return Measurement(row["after"]["large sampled"], row, judged=not trial.quick)


@claim(
    "policy.collapse",
    statement="At a learning rate of 1e-3 the large policy without distillation and selection: sampled "
    "accuracy, from .45 at the start (one of the two, and Hybrid-GRPO, in the details)",
    source=PAPER,
    setting=f"{SIZES}; learning rate of both 1e-3 instead of 3e-4",
    paper="collapses, at another scale",
    seeds=SEEDS,
)
def collapse(trial: Trial) -> Measurement:
    names = ("neither", "no distillation", "no selection", "hybrid")
    rows = {name: hybrid(trial, name, lr=1e-3) for name in names}
    return Measurement(rows["neither"]["large sampled"], rows, judged=not trial.quick)


ABLATIONS = (
    "no distillation",
    "no selection",
    "neither",
    "k3",
    "alpha 2",
    "hints at first",
    "hints always",
    "ratio cap 3",
    "kdrl",
)


@claim(
    "policy.ablations",
    statement="Lowest sampled accuracy of the large policy among all ablations, from .45 at the start "
    "(the collapses do not show in 300 steps); the whole table in the details",
    source=PAPER,
    setting=f"{SIZES}; copies by the truncated SVD and by BLAST",
    paper="collapses without distillation and selection, and with hints throughout",
    seeds=SEEDS,
)
def ablations(trial: Trial) -> Measurement:
    rows = {name: hybrid(trial, name) for name in ABLATIONS}
    trained = [row["large sampled"] for name, row in rows.items() if name != "kdrl"]
    rows |= {f"small: {name}": small_alone(trial, name) for name in ("grpo", "grpo-14", "pods")}
    rows |= {"hybrid": hybrid(trial, "hybrid", continued=True), "grpo large": grpo_large(trial)}
    return Measurement(min(trained), rows, judged=not trial.quick)


@claim(
    "policy.copies",
    statement="Copies of the large policy as its small one: best continued accuracy of the large policy "
    "among truncated SVD and BLAST at a quarter and a half of each matrix; the whole table in the details",
    source=OWN,
    setting=f"{SIZES}; copies healed in 100 steps on the large policy's samples, or as named in the details",
    seeds=SEEDS,
)
def copies(trial: Trial) -> Measurement:
    rows = {
        f"{structure} {keep}": from_copy(trial, f"{structure}-{keep}", structure=structure, keep=keep)
        for structure in ("lowrank", "blast")
        for keep in (0.25, 0.5)
    }
    rows["rank 12"] = from_copy(trial, "rank-12", rank=12)
    rows["rank 12, GRPO alone"] = from_copy(trial, "rank-12-alone", rank=12, alone=True)
    rows["rank 12 in second moments"] = _cheap_copy(trial)
    for name, healing in {"GRPO alone": CHEAP, "not healed": {"steps": 0}}.items():
        rows[f"rank 12 in second moments, {name}"] = from_copy(
            *(trial, f"cheap-{name.lower().replace(' ', '-')}"),
            rank=12,
            weighted=True,
            healing=healing,
            alone=name == "GRPO alone",
        )
    best = max(row["continued"]["large sampled"] for row in rows.values() if "continued" in row)
    return Measurement(best, rows, judged=not trial.quick)


@claim(
    "policy.copy-ess",
    statement="A healed copy is close to its large policy: effective sample size of the ratios",
    source=OWN,
    setting=COPIED,
    at_least=0.7,
    seeds=SEEDS,
)
def copy_ess(trial: Trial) -> Measurement:
    row = from_copy(trial, "rank-12", rank=12)
    details = {"healed": row["healed"], "before": row["before"]}
    return Measurement(row["healed"]["ess"], details, judged=not trial.quick)


@claim(
    "policy.copy-kl",
    statement="A healed copy is close to its large policy: divergence",
    source=OWN,
    setting=COPIED,
    at_most=0.15,
    seeds=SEEDS,
    unit=" nats",
)
def copy_kl(trial: Trial) -> Measurement:
    return Measurement(from_copy(trial, "rank-12", rank=12)["healed"]["kl"], judged=not trial.quick)


@claim(
    "policy.independent-ess",
    statement="An independent small policy is far from the large one: effective sample size of the ratios",
    source=OWN,
    setting=SIZES,
    at_most=0.3,
    seeds=SEEDS,
)
def independent_ess(trial: Trial) -> Measurement:
    row = starts(trial)
    return Measurement(row["ess"], row, judged=not trial.quick)


@claim(
    "policy.self-large",
    statement="Self co-distillation: sampled accuracy of the large policy",
    source=OWN,
    setting=COPIED,
    at_least=0.70,
    seeds=SEEDS,
)
def self_large(trial: Trial) -> Measurement:
    row = from_copy(trial, "rank-12", rank=12)
    return Measurement(row["large sampled"], row, judged=not trial.quick)


@claim(
    "policy.self-above",
    statement="Self co-distillation above co-distillation from an independent small policy: difference of "
    "the large policy's sampled accuracies",
    source=OWN,
    setting=COPIED,
    at_least=0.0,
    seeds=SEEDS,
)
def self_above(trial: Trial) -> Measurement:
    copied, both = from_copy(trial, "rank-12", rank=12), hybrid(trial, "hybrid", continued=True)
    return Measurement(copied["large sampled"] - both["large sampled"], judged=not trial.quick)


@claim(
    "policy.self-continued",
    statement="Self co-distillation and continued training: sampled accuracy of the large policy",
    source=OWN,
    setting=f"{COPIED}; then 75 steps of GRPO on the large policy",
    at_least=0.84,
    seeds=SEEDS,
)
def self_continued(trial: Trial) -> Measurement:
    row = from_copy(trial, "rank-12", rank=12)["continued"]
    return Measurement(row["large sampled"], row, judged=not trial.quick)


@claim(
    "policy.self-small",
    statement="Self co-distillation: greedy accuracy of the small policy",
    source=OWN,
    setting=COPIED,
    at_least=0.90,
    seeds=SEEDS,
)
def self_small(trial: Trial) -> Measurement:
    return Measurement(from_copy(trial, "rank-12", rank=12)["small greedy"], judged=not trial.quick)


TRUNCATED = (
    f"{SIZES}; the large policy's ratios truncated at 2 instead of clipped, its learning rate 1.5e-4 "
    "(the small one's 3e-4)"
)


@claim(
    "policy.improved-large",
    statement="With truncated ratios the large policy learns without continued training: sampled accuracy",
    source=OWN,
    setting=TRUNCATED,
    paper="none; the paper's clipping is measured beside it",
    at_least=0.78,
    seeds=SEEDS,
)
def improved_large(trial: Trial) -> Measurement:
    row = hybrid(trial, "improved", continued=True)
    return Measurement(row["large sampled"], row, judged=not trial.quick)


@claim(
    "policy.improved-small",
    statement="Beside this better teacher the small policy is better than GRPO with all 14 rollouts: paired "
    "difference of greedy accuracies over six seeds, in its standard errors",
    source=OWN,
    setting=TRUNCATED,
    at_least=2.0,
)
def improved_small(trial: Trial) -> Measurement:
    details: dict[str, list[float]] = {}
    for seed in (0,) if trial.quick else range(6):
        one = replace(trial, seed=seed)
        ours, theirs = hybrid(one, "improved", continued=True), small_alone(one, "grpo-14")
        for kind in ("greedy", "sampled"):
            details.setdefault(f"{kind}, ours", []).append(ours[f"small {kind}"])
            details.setdefault(f"{kind}, GRPO", []).append(theirs[f"small {kind}"])
    gains = [a - b for a, b in zip(details["greedy, ours"], details["greedy, GRPO"], strict=True)]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 1.0
    return Measurement(mean(gains) / error, details, judged=not trial.quick)


@claim(
    "policy.generation-work",
    statement="Work of generation with truncated ratios and continued training, over that of GRPO of the "
    "large policy",
    source=OWN,
    setting=f"{TRUNCATED}; then 75 steps of GRPO on the large policy, against 300",
    at_most=0.80,
    seeds=SEEDS,
)
def generation_work(trial: Trial) -> Measurement:
    both, grpo = hybrid(trial, "improved", continued=True), grpo_large(trial)
    work = both["generated"] + both["continued"]["generated"]
    details = {"generated": work, "GRPO": grpo["generated"], "GRPO on the way": grpo["way"]}
    return Measurement(work / grpo["generated"], details, judged=not trial.quick)


@claim(
    "policy.generation-accuracy",
    statement="The large policy's sampled accuracy at that work, minus that of GRPO",
    source=OWN,
    setting=f"{TRUNCATED}; then 75 steps of GRPO on the large policy, against 300",
    at_least=0.0,
    seeds=SEEDS,
)
def generation_accuracy(trial: Trial) -> Measurement:
    both, grpo = hybrid(trial, "improved", continued=True), grpo_large(trial)
    gain = both["continued"]["large sampled"] - grpo["large sampled"]
    return Measurement(gain, {"continued": both["continued"], "GRPO": grpo}, judged=not trial.quick)


CHEAPLY = (
    f"{SIZES}; the small one a copy of the large one, rank 12 in the second moments of each layer's inputs, "
    "healed in 60 steps on 20 batches of 128 samples; then 75 steps of GRPO on the large policy, against 300"
)


CHEAP = {"steps": 60, "fresh": 20}


def _cheap_copy(trial: Trial) -> dict[str, Any]:
    return from_copy(trial, "cheap", rank=12, weighted=True, healing=CHEAP)


@claim(
    "policy.self-work",
    statement="Work of generation of self co-distillation and continued training, healing included, over "
    "that of GRPO of the large policy",
    source=OWN,
    setting=CHEAPLY,
    at_most=0.80,
    seeds=SEEDS,
)
def self_work(trial: Trial) -> Measurement:
    row, grpo = _cheap_copy(trial), grpo_large(trial)
    work = row["healing generated"] + row["generated"] + row["continued"]["generated"]
    return Measurement(work / grpo["generated"], row, judged=not trial.quick)


@claim(
    "policy.self-work-accuracy",
    statement="The large policy's sampled accuracy at that work, minus that of GRPO",
    source=OWN,
    setting=CHEAPLY,
    at_least=0.0,
    seeds=SEEDS,
)
def self_work_accuracy(trial: Trial) -> Measurement:
    gain = _cheap_copy(trial)["continued"]["large sampled"] - grpo_large(trial)["large sampled"]
    return Measurement(gain, judged=not trial.quick)
