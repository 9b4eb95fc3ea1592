"""`headwise train`: train what goes with a model."""

from __future__ import annotations

import typer

from headwise.cli.train_chooser import chooser

app = typer.Typer(
    name="train", help="Train small parts that go with a model; the model itself does not change.", no_args_is_help=True
)
app.callback()(lambda: None)  # a group, also with a single command
app.command("chooser")(chooser)
