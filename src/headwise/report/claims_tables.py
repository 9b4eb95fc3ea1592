"""Tables of the ledger of claims for the terminal. Rows are those of `headwise.claims.results.Row.to_json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

Told = Mapping[str, Any]
MARKS = {"held": ("✓", "green"), "not held": ("✗", "red"), "not testable": ("–", "yellow"), "old": ("old", "dim"), "": ("", "")}
NONE = "–"


def short(value: float | None) -> str:
    """A number in few characters: `0.062`, `12.3`, `1.2e-06`."""
    if value is None:
        return NONE
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """`0.12 (0.03 to 0.21)`, or the number alone."""
    return short(value) if low is None or high is None else f"{short(value)} ({short(low)} to {short(high)})"


def p_text(p: float | None) -> str:
    """A p-value; `<0.001` for small ones."""
    return NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def claims_list(rows: Sequence[Told], models: Sequence[str]) -> Table:
    """A row per claim: key, sentence, card, and the verdict on every model."""
    table = Table("claim", "what is claimed", *models, box=None, header_style="bold", pad_edge=False)
    table.columns[0].overflow = "fold"
    by_claim: dict[str, dict[str, Told]] = {}
    for row in rows:
        by_claim.setdefault(row["claim"], {})[row["model"]] = row
    for key, each in by_claim.items():
        first = next(iter(each.values()))
        cells = [mark(each[name]) if name in each else Text("") for name in models]
        table.add_row(Text(key), Text(f"{first['sentence']} ({first['card']}, {first['place']})"), *cells)
    return table


def claims_table(title: str, rows: Sequence[Told]) -> Table:
    """A line per measured claim, family by family: effect with its interval, control, corrected p and verdict."""
    some = " (quick: small versions)" if any(row["quick"] for row in rows) else ""
    table = Table(title=Text(title + some, style="bold"), title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("claim", overflow="fold", min_width=24)
    for name in ("effect (95 % CI)", "control", "p corr."):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    family = ""
    for row in rows:
        own, _, name = row["claim"].partition(".")
        if own != family:
            family = own
            table.add_row(Text(f"{own} ({row['card']})", style="bold"))
        table.add_row(Text(f"  {name}"), _effect(row), short(row["control"]), p_text(row["p_corrected"]), mark(row))
    return table


def mark(row: Told) -> Text:
    """The verdict as a sign; that of a small version says so."""
    sign, style = MARKS[row["verdict"]]
    return Text(f"{sign} quick" if row["quick"] and sign else sign, style)


def reasons(rows: Sequence[Told]) -> list[str]:
    """Why claims cannot be tested, with how many."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "not testable":
            found.setdefault(row["why"], []).append(row["claim"])
    return [f"not testable: {why} ({keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''})" for why, keys in found.items()]


def _effect(row: Told) -> str:
    if row["low"] is None:
        return short(row["effect"])
    return f"{row['effect']:.2g} ({row['low']:.2g} to {row['high']:.2g})"


def counts_line(rows: Sequence[Told]) -> str:
    """How many held, and so on."""
    names = {"held": "✓ held", "not held": "✗ not held", "not testable": "– not testable", "old": "measured by another ledger", "": "not measured"}
    counted = Counter(row["verdict"] for row in rows if not row["quick"])
    found = [f"{counted[key]} {name}" for key, name in names.items() if counted[key]]
    quick = sum(row["quick"] for row in rows)
    return ", ".join(found + ([f"{quick} measured in small versions (quick), which say nothing about the claim"] if quick else [])) or "no claim"


def claim_lines(row: Told) -> list[str]:
    """All about one claim on one model."""
    told = {
        "claim": f"{row['claim']} ({row['card']}, {row['place']}): {row['sentence']}",
        "model": row["model"],
        "metric": row["metric"],
        "rule": row["rule"],
        "gate": row["gate"],
        "data": row["data"],
        "controls": row["controls"],
        "tries": row["tries"],
        "paper": row["paper"],
        "effect": f"{row['effect_name']} {with_interval(row['effect'], row['low'], row['high'])}",
        "control": f"{row['control_name']} {with_interval(row['control'], row['control_low'], row['control_high'])}" if row["control_name"] else "",
        "p": "" if row["p"] is None else f"{p_text(row['p'])}, corrected {p_text(row['p_corrected'])}",
        "verdict": f"{row['verdict'] or 'not measured'}{' (quick)' if row['quick'] else ''}{': ' + row['why'] if row['why'] else ''}",
        "missed": row["missed"],
        "numbers": "; ".join(f"{name} {with_interval(*ends)}" for name, ends in row["numbers"].items()),
        "note": row["note"],
    }
    return [*(f"{name:<10} {value}" for name, value in told.items() if value), ""]


def plan_table(steps: Sequence[Told]) -> Table:
    """What would be run."""
    table = Table("model", "experiment", "claims", "minutes", "needs", box=None, header_style="bold", pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for row in steps:
        needs = "; ".join(filter(None, (*row["data"], row["needs"])))
        table.add_row(row["model"], row["experiment"], str(row["claims"]), short(row["minutes"]), Text(needs))
    return table
