"""`headwise steer`: change what chosen heads give or read, and see how the answer changes."""

from __future__ import annotations

import typer

from headwise.cli.steer_conflict import conflict
from headwise.cli.steer_copy import copy
from headwise.cli.steer_vector import vector

app = typer.Typer(
    name="steer", help="Steer answers by heads: function vectors, forced copying, memory against passage.", no_args_is_help=True
)
app.command("vector")(vector)
app.command("copy")(copy)
app.command("conflict")(conflict)
