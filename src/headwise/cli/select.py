"""`headwise select`: score documents by their loss increase when retrieval heads are ablated, choose a share, look at the choice."""

from __future__ import annotations

import typer

from headwise.cli.select_choose import choose, report
from headwise.cli.select_score import score

app = typer.Typer(
    name="select", help="Choose pretraining data by how much ablating retrieval heads raises the loss.", no_args_is_help=True
)
app.command("score")(score)
app.command("choose")(choose)
app.command("report")(report)
