"""``lowdim claims``: list the papers' claims and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowdim.cli import manners
from lowdim.errors import RunError

if TYPE_CHECKING:
    from lowdim.claims import Claim, Result

__all__ = ["register"]

STYLES = {"pass": "green", "short": "red", "reported": "cyan", "skipped": "yellow"}

SystemOption = Annotated[str | None, typer.Option("--system", help="Only the claims of this system.")]


def register(app: typer.Typer) -> None:
    """Add ``lowdim claims list`` and ``lowdim claims run`` to the application."""
    group = typer.Typer(no_args_is_help=True, help="List the papers' claims, or measure them here.")
    app.add_typer(group, name="claims", rich_help_panel=manners.HOUSE_PANEL)

    @group.command("list")
    def list_claims(system: SystemOption = None, json: manners.JsonOption = False) -> None:
        """Show what can be measured, with thresholds and sources."""
        from lowdim.claims import find

        chosen = find(system=system)
        if json:
            manners.emit([_declaration(claim) for claim in chosen])
        else:
            _show_list(chosen)

    @group.command("run")
    def run_claims(
        ids: Annotated[
            list[str] | None,
            typer.Argument(metavar="[ID]...", help="Ids or patterns ('blast.*'); all by default."),
        ] = None,
        system: SystemOption = None,
        quick: Annotated[
            bool, typer.Option("--quick", help="One seed and smaller experiments: a smoke test, no evidence.")
        ] = False,
        json: manners.JsonOption = False,
        require: Annotated[
            bool, typer.Option("--require", help="A skipped claim fails the run too.")
        ] = False,
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="Write the Markdown table of all results here.")
        ] = None,
        results: Annotated[
            Path | None,
            typer.Option(
                "--results", help="Folder of the result files; by default --output without its suffix."
            ),
        ] = None,
        resume: Annotated[
            bool,
            typer.Option("--resume", help="Keep what an earlier run with the same --quick has measured."),
        ] = False,
    ) -> None:
        """Measure claims over their seeds; exit code 1 when one falls short.

        Results of claims that are not measured now stay in the results folder and in the table.
        """
        from lowdim.claims import find, markdown, registered, run
        from lowdim.claims.runner import load
        from lowdim.runs import atomic_write

        chosen = find(ids or (), system=system)
        folder = results if results is not None else _folder(output)
        measured = run(chosen, quick=quick, results=folder, resume=resume, callback=_Progress(len(chosen)))
        if output is not None and folder is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(output, markdown(registered(), results=load(folder)))
            manners.console.print(f"Table: {output}", highlight=False)
        if json:
            manners.emit([result.to_dict() for result in measured])
        else:
            _show_results(measured)
        failing = {"short", "skipped"} if require else {"short"}
        if any(result.status in failing for result in measured):
            raise typer.Exit(manners.GATE_FAILED)


def _folder(output: Path | None) -> Path | None:
    if output is None:
        return None
    if not output.suffix:
        raise RunError(
            f"claims: --output {output} names the table and needs a suffix, for instance {output}.md. "
            "Result files go to a folder of that name without the suffix."
        )
    return output.with_suffix("")


def _declaration(claim: Claim) -> dict[str, object]:
    return {
        "id": claim.id,
        "system": claim.system,
        "statement": claim.statement,
        "source": claim.source,
        "setting": claim.setting,
        "paper": claim.paper,
        "threshold": claim.threshold or None,
        "gated": claim.gated,
        "seeds": list(claim.seeds),
    }


def _show_list(claims: list[Claim]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    for claim in claims:
        seeds = f"{len(claim.seeds)} seed{'s' if len(claim.seeds) > 1 else ''}"
        heading = Text(claim.id, style="bold")
        heading.append(
            f"  {claim.threshold or 'reported'}, paper: {claim.paper}, {seeds}", style="not bold dim"
        )
        manners.out.print(heading, soft_wrap=True)
        manners.out.print(Padding(Text(claim.statement), (0, 0, 0, 4)))


def _show_results(results: list[Result]) -> None:
    from rich.table import Table
    from rich.text import Text

    from lowdim.claims.table import figure

    table = Table(box=None, pad_edge=False)
    table.add_column("ID", no_wrap=True)
    for column in ("Status", "Measured", "Threshold", "Paper", "Seconds"):
        table.add_column(column, overflow="fold", no_wrap=column == "Measured")
    for result in results:
        status = Text(result.status, style=STYLES[result.status])
        measured = figure(result) or result.reason
        table.add_row(result.id, status, measured, result.threshold, result.paper, f"{result.seconds:.1f}")
    manners.out.print(table)


class _Progress:
    """One line on stderr before and after every claim: claims take minutes, and logs keep lines."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def __call__(self, claim: Claim, result: Result | None) -> None:
        from rich.markup import escape

        place = f"[dim]{self._done + 1}/{self._total}[/dim]"
        if result is None:
            manners.console.print(f"{place} {claim.id} ...", highlight=False)
            return
        self._done += 1
        from lowdim.claims.table import figure

        shown = escape(result.reason or f"{figure(result, unit=claim.unit)} {claim.threshold}")
        colored = f"[{STYLES[result.status]}]{result.status}[/]"
        manners.console.print(
            f"{place} {claim.id} {colored} {shown} ({result.seconds:.1f} s)", highlight=False
        )
