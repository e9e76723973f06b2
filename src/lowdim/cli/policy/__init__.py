"""``lowdim policy``: two language-model policies trained at once from the small one's rollouts."""

from __future__ import annotations

import typer

from lowdim.cli import manners
from lowdim.cli.policy import demo, evaluate, plan, train

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``lowdim policy`` to the application."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Reinforcement learning of language models: a large one learns from what a small one writes.",
    )
    app.add_typer(group, name="policy", rich_help_panel=manners.SYSTEM_PANEL)
    for verb in (train, plan, evaluate, demo):
        verb.register(group)
