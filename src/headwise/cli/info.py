"""`headwise info`: what headwise sees in a model, and which families it knows."""

from __future__ import annotations

from typing import Annotated

import typer

from headwise.cli import options as o


def info(
    model: o.ModelName = None,
    families: Annotated[bool, typer.Option("--families", help="List the known model families instead.")] = False,
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Show the heads of a model: family, layers, windows, positions."""
    from headwise.report.console import facts_table, print_all

    if families:
        from headwise.models.families import FAMILIES, REFUSED

        rows = {name: family.note or "-" for name, family in sorted(FAMILIES.items())}
        refused = {name: f"refused: {reason}" for name, reason in sorted(REFUSED.items())}
        if json:
            o.print_json({"supported": rows, "refused": REFUSED})
        else:
            print_all(facts_table("model type", "note", rows | refused))
        return
    loaded = o.load(model, "cpu", "auto", revision)
    from headwise.models.provenance import describe_model

    layout = loaded
    facts = describe_model(loaded) | {
        "parameters": sum(p.numel() for p in loaded.hf.parameters()),
        "positions": layout.positions,
        "note": layout.family.note,
    }
    if json:
        o.print_json(facts)
        return
    print_all(facts_table("fact", "value", {key: _text(value) for key, value in facts.items()}))


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value in (None, "") else str(value)
