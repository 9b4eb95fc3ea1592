"""`headwise train`: train what goes with a model."""

from __future__ import annotations

import typer

from headwise.cli.train_chooser import chooser
from headwise.cli.train_heads import mudaf, rank
from headwise.cli.train_rhio import rhio
from headwise.cli.train_scales import scales
from headwise.cli.train_unfaithful import unfaithful

app = typer.Typer(name="train", help="Train heads of a model, or small parts that go with it.", no_args_is_help=True)
app.command("chooser")(chooser)
app.command("mudaf")(mudaf)
app.command("rank")(rank)
app.command("scales")(scales)
app.command("unfaithful")(unfaithful)
app.command("rhio")(rhio)
