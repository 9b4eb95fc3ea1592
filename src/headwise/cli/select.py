"""`headwise select`: score a corpus by what its texts lose without retrieval heads, choose a share of it, look at the choice."""

from __future__ import annotations

import typer

from headwise.cli.select_choose import choose, report
from headwise.cli.select_score import score

app = typer.Typer(name="select", help="Choose pretraining data by the influence of retrieval heads.", no_args_is_help=True)
app.command("score")(score)
app.command("choose")(choose)
app.command("report")(report)
