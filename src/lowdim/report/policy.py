"""The page of ``lowdim policy``: how good both models became, what it cost, and how far apart they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowdim.errors import DataError
from lowdim.report import policy_figures as figures
from lowdim.report.page import Card, Page
from lowdim.report.wording import count, duration, millions, percent

__all__ = ["policy_page"]

METHODS = {
    "hybrid": "Hybrid-GRPO",
    "kdrl": "KDRL",
    "pods": "PODS",
    "grpo": "GRPO",
}

EXPLAINED = {
    "hybrid": "Only the small model wrote. It learned from the reward and from how probable its completions "
    "are for the large model; the large model learned the reward from the same completions, each weighted "
    "by how much more (or less) probable it is for the large model than for the small one. The paper calls "
    "this CoDistill-GRPO.",
    "kdrl": "The small model wrote, and learned from the reward and from how probable its completions are "
    "for the large model, which was frozen.",
    "pods": "One model wrote several completions of every prompt and learned from the best and the worst.",
    "grpo": "One model wrote several completions of every prompt and learned to do what the better ones did.",
}

SETTINGS = {
    "small": "Small model",
    "large": "Large model",
    "rewards": "Rewards",
    "seed": "Seed",
    "continue_steps": "Steps of the large model alone",
    "eval_samples": "Completions per prompt in an evaluation",
}

TRAINER = {
    "candidates": "Rollouts per prompt, M",
    "keep_rollouts": "Rollouts that are trained on, G",
    "alpha": "Weight of the large model's opinion, alpha",
    "hint_tokens": "Hint tokens, T",
    "selection": "Selection",
    "kd_estimator": "Estimator",
    "ratio_cap": "Cap of ratios",
    "max_completion_length": "Longest completion, tokens",
    "learning_rate": "Learning rate",
    "large_learning_rate": "Learning rate, large",
    "per_device_train_batch_size": "Rollouts per micro-batch",
    "gradient_accumulation_steps": "Micro-batches",
    "compaction": "Compaction",
    "staged_rollouts": "Rollouts of the first stage",
}

CUT = 400
"""Characters of a completion that are shown."""


def policy_page(report: Mapping[str, Any], *, against: Mapping[str, Any] | None = None) -> Page:
    """Return the page of a run, beside another one if given.

    Parameters
    ----------
    report : mapping
        The contents of report.json. Only ``settings`` (with ``method``) must be there.
    against : mapping, optional
        The report.json of another run, for example GRPO on the large model.

    Returns
    -------
    Page
        Call ``.write(path)`` or ``.html()``.

    Raises
    ------
    DataError
        If a report has no ``settings`` with a ``method``.

    Examples
    --------
    >>> row = {"phase": "train", "step": 0, "model": "small", "accuracy": 0.25, "error": 0.01}
    >>> page = policy_page({"settings": {"method": "hybrid"}, "evaluations": [row]})
    >>> "CoDistill-GRPO" in page.html() and "25.0" in page.html()
    True
    """
    for one in (report, against):
        if one is not None and "method" not in (one.get("settings") or {}):
            raise DataError(
                "policy_page: a report has no settings with a method. Give the contents of a report.json "
                "written by `lowdim policy train`."
            )
    method = report["settings"]["method"]
    name = METHODS.get(method, str(method))
    runs: dict[str, Mapping[str, Any]] = {name: report}
    if against is not None:
        other = METHODS.get(against["settings"]["method"], "the other run")
        runs[other if other != name else f"{other}, the other run"] = against
    page = Page(f"{name} of language models", subtitle=_subtitle(report), eyebrow="Trained by lowdim")
    if report.get("sentence"):
        page.lead(str(report["sentence"]))
    page.cards(_cards(report))
    page.text(EXPLAINED.get(method, ""))
    if report.get("stopped"):
        page.verdicts([(False, f"The run was stopped: {report['stopped']}.")])
    _learning(page, runs)
    _cost(page, runs)
    _distance(page, report)
    _signal(page, report)
    _samples(page, report)
    _use(page, report)
    _made(page, report)
    return page


def _subtitle(report: Mapping[str, Any]) -> str:
    prompts, steps = report.get("prompts") or {}, report.get("steps") or {}
    parts = [
        count(prompts["train"], "prompt") if prompts.get("train") else None,
        count(steps["train"], "step") if steps.get("train") else None,
        f"{steps['continue']:,} more of the large model alone" if steps.get("continue") else None,
        str(report["created"])[:10] if report.get("created") else None,
    ]
    return " · ".join(part for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    rows = report.get("evaluations") or []
    alone = report["settings"]["method"] in figures.ALONE
    cards = []
    for model in ("small", "large"):
        own = [row for row in rows if row["model"] == model]
        if own:
            first, last = own[0]["accuracy"], own[-1]["accuracy"]
            title = "Accuracy" if alone else f"Accuracy, {model} model"
            note = f"{percent(first)} before" if len(own) > 1 else "frozen"
            cards.append(Card(title, percent(last), note, min(max(last, 0.0), 1.0)))
    ledger = report.get("ledger") or []
    seconds = sum(row["seconds"] for row in ledger)
    if seconds:
        writing = sum(row["seconds"] for row in ledger if row["phase"] in ("generate", "hint"))
        cards.append(Card("Time of training", duration(seconds), "without evaluations"))
        cards.append(
            Card("Of it, writing", percent(writing / seconds), "generation of rollouts", writing / seconds)
        )
    start = (report.get("start") or {}).get("compressed")
    if start:
        cards.append(
            Card(
                "Small model",
                millions(start["parameters_after"]),
                f"parameters, a compressed copy of {millions(start['parameters_before'])}",
            )
        )
    return cards


def _learning(page: Page, runs: figures.Runs) -> None:
    accuracy, reward = figures.accuracy(runs), figures.reward(runs)
    if accuracy is None and reward is None:
        return
    page.section(
        "Learning",
        intro="Accuracy is measured on prompts that were not trained on, with sampling at the temperature "
        "of the training; bars are standard errors over prompts.",
    )
    if accuracy is not None:
        page.figure(accuracy, caption="Accuracy over the steps of training", height=400)
    if reward is not None:
        page.figure(reward, caption="Reward of the rollouts that were trained on", height=320)
    rows = [
        {
            **({"Run": name} if len(runs) > 1 else {}),
            "Phase": row["phase"],
            "Step": row["step"],
            "Model": figures.who(report, row["model"]),
            "Accuracy": row["accuracy"],
            "Error": row.get("error"),
            "Greedy": row.get("greedy"),
            "Best of samples": row.get("best_of"),
            "Cut off": row.get("truncated"),
            "Tokens": row.get("length"),
        }
        for name, report in runs.items()
        for row in report.get("evaluations") or []
    ]
    if rows:
        shares = ("Accuracy", "Error", "Greedy", "Best of samples", "Cut off")
        page.table(
            rows, caption="All evaluations", formats={**dict.fromkeys(shares, percent), "Tokens": "{:.1f}"}
        )


def _cost(page: Page, runs: figures.Runs) -> None:
    seconds, work = figures.ledger(runs), figures.ledger(runs, "flops")
    if seconds is None:
        return
    page.section(
        "Cost",
        intro="Seconds are those of the training alone; floating-point work counts 2 operations per "
        "parameter and token read, 6 per token trained on. Hybrid-GRPO saves time only where writing by the "
        "large model is slow; in floating-point work it never does.",
    )
    height = 160 + 60 * len(runs)
    page.figure(seconds, caption="Seconds by kind of work", height=height)
    if work is not None:
        page.figure(work, caption="Floating-point work by kind", height=height)
    rows = [
        {
            **({"Run": name} if len(runs) > 1 else {}),
            "Phase": row["part"],
            "Work": figures.WORK.get(figures.work_of(report, row["phase"]), row["phase"]),
            "Seconds": row["seconds"],
            "Tokens": row["tokens"],
            "Of completions": row["completion_tokens"],
            "GFLOP": row["flops"] / 1e9,
        }
        for name, report in runs.items()
        for row in report.get("ledger") or []
    ]
    formats = {"Seconds": "{:.3g}", "Tokens": "{:,}", "Of completions": "{:,}", "GFLOP": "{:,.4g}"}
    page.table(rows, caption="The ledger", formats=formats)


def _distance(page: Page, report: Mapping[str, Any]) -> None:
    ratios, sizes = figures.ratios(report), figures.sample_size(report)
    if ratios is None and sizes is None:
        return
    page.section(
        "How far apart the models were",
        intro="The large model learns from completions that it did not write. If they are as probable for "
        "it as for the small one, all ratios are 1 and the effective sample size is 100 %; below 10 % its "
        "updates need not improve it, and the run warns.",
    )
    if sizes is not None:
        page.figure(sizes, caption="Effective sample size, and tokens whose ratio was clipped", height=340)
    if ratios is not None:
        page.figure(
            ratios, caption="Ratios of the large to the small model's probability of a token", height=320
        )


def _signal(page: Page, report: Mapping[str, Any]) -> None:
    groups, entropy = figures.groups(report), figures.entropy(report)
    if groups is None and entropy is None:
        return
    page.section(
        "What there was to learn from",
        intro="A prompt whose rollouts all have the same reward teaches nothing. Where most are all wrong, "
        "the task is too hard for the model that writes; entropy that falls to 0 means that it has stopped "
        "trying.",
    )
    if groups is not None:
        page.figure(groups, caption="Prompts without anything to compare", height=320)
    if entropy is not None:
        page.figure(entropy, caption="Entropy of the models on the rollouts", height=300)


def _samples(page: Page, report: Mapping[str, Any]) -> None:
    samples = report.get("samples") or []
    if not samples:
        return
    rows: dict[tuple[str, Any, Any], dict[str, Any]] = {}
    for one in samples:
        key = (one["model"], one["row"], one["sample"])
        row = rows.setdefault(
            key,
            {
                "Model": figures.who(report, one["model"]),
                "Prompt": _text(one["prompt"]),
                "How": "most probable" if one["sample"] == "greedy" else "sampled",
                "Answer": one.get("answer"),
                "Before": None,
                "Right before": None,
                "After": None,
                "Right after": None,
            },
        )
        when = one["when"].capitalize()
        row[when] = _text(one["completion"])
        row[f"Right {one['when']}"] = one.get("reward")
    page.section("Completions", intro="The same prompts before and after; the numbers are rewards.")
    page.table(list(rows.values()), caption="Completions before and after")


def _use(page: Page, report: Mapping[str, Any]) -> None:
    if not report.get("output"):
        return
    large = any(row["model"] == "large" for row in report.get("evaluations") or [])
    which = ' or "large"' if large and report["settings"]["method"] == "hybrid" else ""
    page.section("Use it").code(
        "from lowdim.policy import HybridGRPOResult\n\n"
        f"result = HybridGRPOResult.load({str(report['output'])!r})\n"
        "result.table             # one row per evaluation\n"
        f'model = result.policy("small")   # "small"{which}, with from_pretrained\'s options',
        caption="Go on with the result in Python:",
    )


def _made(page: Page, report: Mapping[str, Any]) -> None:
    page.section("How it was made")
    if report.get("command"):
        page.code(str(report["command"]), caption="The command:")
    settings = report["settings"]
    inner = settings.get("settings") or {}
    facts: list[tuple[str, Any]] = [("Method", METHODS.get(settings["method"], settings["method"]))]
    facts += [
        (title, ", ".join(value) if isinstance(value, list) else value)
        for key, title in SETTINGS.items()
        if (value := settings.get(key)) not in (None, [], 0) or (key == "seed" and value is not None)
    ]
    facts += [(title, inner[key]) for key, title in TRAINER.items() if inner.get(key) not in (None, False)]
    start = (report.get("start") or {}).get("compressed")
    if start:
        facts.append(("Compressed by", f"{start['structure']}, {percent(start['keep'])} kept"))
        facts.append(
            ("Healed for", f"{start['heal_steps']} steps on {start['sampled_tokens']:,} sampled tokens")
        )
    facts += [(name, version) for name, version in (report.get("versions") or {}).items()]
    page.facts(facts)
    if report.get("notes"):
        page.sentences(str(note).capitalize() + "." for note in report["notes"])


def _text(value: Any) -> str:
    """Return a prompt or a completion as one short text."""
    if isinstance(value, list):
        value = "\n".join(str(message.get("content", "")) for message in value)
    text = str(value)
    return text if len(text) <= CUT else f"{text[:CUT]} ..."
