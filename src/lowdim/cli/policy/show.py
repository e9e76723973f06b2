"""What ``lowdim policy`` prints: tables of runs, plans and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowdim.cli import manners

__all__ = ["show_evaluation", "show_plan", "show_run"]


def show_run(report: dict[str, Any], output: Path) -> None:
    """Print accuracies, the ledger and the finding of a run."""
    from lowdim.report.policy_figures import WORK, who, work_of
    from lowdim.report.wording import duration, percent

    out = manners.out
    if report["evaluations"]:
        table = _table("Accuracy")
        for name in ("Phase", "Step", "Model", "Sampled", "± error", "Greedy", "Cut off"):
            table.add_column(name, justify="left" if name in ("Phase", "Model") else "right", no_wrap=True)
        for row in report["evaluations"]:
            figures = (row["accuracy"], row["error"], row["greedy"], row["truncated"])
            shown = ["" if value is None else percent(value) for value in figures]
            table.add_row(row["phase"], str(row["step"]), who(report, row["model"]), *shown)
        out.print(table)
    table = _table("\nWhere the time went")
    for name in ("Phase", "Work", "Time", "Share", "Tokens", "GFLOP"):
        table.add_column(name, justify="left" if name in ("Phase", "Work") else "right", no_wrap=True)
    for row in report["ledger"]:
        cells = [
            duration(row["seconds"]),
            percent(row["share"]),
            f"{row['tokens']:,}",
            f"{row['flops'] / 1e9:,.1f}",
        ]
        table.add_row(row["part"], WORK.get(work_of(report, row["phase"]), row["phase"]), *cells)
    out.print(table)
    out.print(f"\n{report['sentence']}", highlight=False, markup=False)
    out.print(f"\nReport: {output / 'report.html'}", highlight=False, soft_wrap=True, markup=False)


def show_plan(found: Any) -> None:
    """Print the seconds of a step, the memory plans and the verdict."""
    out = manners.out
    frame = found.table()
    table = _table("Seconds of a step")
    table.add_column("Part")
    names = {"grpo_large": "GRPO, large", "grpo_small": "GRPO, small", "hybrid": "Hybrid-GRPO"}
    for name in frame.columns:
        table.add_column(names.get(str(name), str(name)), justify="right", no_wrap=True)
    for part, row in frame.iterrows():
        table.add_row(
            str(part).replace("_", " "), *("" if value != value else f"{value:.3g}" for value in row)
        )
    out.print(table)
    frame = found.memory_table()
    if len(frame):
        table = _table("\nMemory, GB")
        table.add_column("Plan")
        for name in frame.columns:
            table.add_column(str(name).replace("_", " "), justify="right")
        for plan, row in frame.iterrows():
            cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row]
            table.add_row(str(plan), *cells)
        out.print(table)
    out.print()
    for sentence in found.verdict:
        warning = sentence in found.warnings
        out.print(f"- {sentence}", highlight=False, markup=False, style="yellow" if warning else None)


def show_evaluation(found: Any) -> None:
    """Print means and pass@k of an evaluation."""
    from lowdim.report.wording import duration, percent

    out = manners.out
    table = _table(f"{len(found.rewards):,} prompts, {found.rewards.shape[1]} completions each")
    for name in ("Measure", "Value", "± error"):
        table.add_column(name, justify="left" if name == "Measure" else "right", no_wrap=True)

    def add(name: str, value: float, error: float) -> None:
        table.add_row(name, *("" if each != each else percent(each) for each in (value, error)))

    add("mean reward", found.mean, found.error)
    add("greedy accuracy", *found.greedy_accuracy)
    for row in found.table().itertuples():
        add(f"pass@{row.k}", row.estimate, row.error)
    out.print(table)
    out.print(
        f"\n{percent(found.truncated_share)} of the completions were cut off; {found.tokens:,} tokens in "
        f"{duration(found.seconds)}.",
        highlight=False,
    )


def _table(title: str) -> Any:
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
