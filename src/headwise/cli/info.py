"""`headwise info`: what headwise sees in a model, and which families it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o

if TYPE_CHECKING:
    from headwise.models.model import Model


def info(
    model: o.ModelName = None,
    families: Annotated[bool, typer.Option("--families", help="List the known model families instead.")] = False,
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Show what headwise knows of a model: heads, layers, windows, positions, and what its family does to logits."""
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
    facts = _facts(o.load(model, "cpu", "saved", revision))
    if json:
        o.print_json(facts)
        return
    print_all(facts_table("fact", "value", {key: _text(value) for key, value in facts.items()}))


def _facts(model: Model) -> dict[str, Any]:
    from headwise.models.families import PARTS
    from headwise.models.model import describe_model

    family, readout = model.family, model.readout
    return describe_model(model) | {
        "fingerprint": model.fingerprint,
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "positions": model.positions,
        "stop_ids": sorted(model.stop_ids),
        "query_layout": family.query,
        "parts": {name: getattr(family, name) for name in PARTS if getattr(family, name)},
        "attention_cap": model.attention_cap,
        "embedding_scale": model.embedding_scale,
        "residual_scale": model.residual_scale,
        "logit_scale": readout.scale,
        "logit_cap": readout.cap,
        "note": family.note,
    }


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value in (None, "") else str(value)
