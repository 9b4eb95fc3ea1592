"""A traced answer and a fitted probe in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from headwise.heads.text import shorten

STYLES = {"read": "green", "remembered": "magenta", "unsure": "yellow"}
SIGNS = {"read": "+", "remembered": "-", "unsure": "?"}
Data = Mapping[str, Any]


def trace_parts(data: Data, measured: str) -> list[RenderableType]:
    """The answer with every token in the colour of its label, its tokens one by one, and the passages.

    Args:
        data: Of `cli.trace_data`.
        measured: How the drop of a passage is measured.
    """
    low, high = data["band"]
    said, key = Text(), Text()
    for token in data["tokens"]:
        if not token["special"]:
            said.append(token["text"], style=STYLES[token["label"]])
    for label, meaning in (
        ("read", f"read (probability above {high:g})"),
        ("remembered", f"remembered (below {low:g})"),
        ("unsure", f"unsure ({low:g} to {high:g})"),
    ):
        key.append(f"{SIGNS[label]} {meaning}  ", style=STYLES[label])
    parts: list[RenderableType] = [said, key, _tokens(data), _passages(data)]
    if any(row["drop"] is not None for row in data["passages"]):
        parts.append(f"drop: {measured[0].lower()}{measured[1:]}.")
    return parts


def _tokens(data: Data) -> Table:
    table = Table("token", "", "read", "passage", "excerpt", box=None, header_style="bold", pad_edge=False)
    for token in data["tokens"]:
        if not token["special"] and token["text"].strip():
            known = token["label"] != "remembered"
            table.add_row(
                Text(token["text"].strip(), style=STYLES[token["label"]]),
                SIGNS[token["label"]],
                f"{token['probability']:.2f}",
                Text(str(token["passage"]) if known else ""),
                Text(shorten(token["excerpt"], 60) if known else ""),
            )
    return table


def _passages(data: Data) -> Table:
    caused = any(row["drop"] is not None for row in data["passages"])
    table = Table(
        "passage",
        "share of scores",
        *(["drop (nats)"] if caused else []),
        "begins",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for row in data["passages"]:
        begins = shorten(" ".join("".join(row["pieces"]).split()), 50)
        table.add_row(Text(row["name"]), f"{row['share']:.0%}", *([f"{row['drop']:+.3f}"] if caused else []), Text(begins))
    return table


def probe_parts(facts: Data, threshold: float, shift: int) -> list[RenderableType]:
    """How good a probe is, in a few lines.

    Args:
        facts: Of the probe.
        threshold: Of the probe.
        shift: Of the probe.
    """
    records, where = facts["records"], facts["localisation"]
    table = Table(
        "remembered means", "AUC (test)", "95 % CI", "read", "remembered", box=None, header_style="bold", pad_edge=False
    )
    for name, row in facts["auc"].items():
        if row is not None:
            cells = (f"{row['auc']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", str(row["read"]), str(row["remembered"]))
            table.add_row(name, *cells)
    lines: list[RenderableType] = [
        table,
        f"{records['usable']} of {records['given']} records usable; "
        + "; ".join(f"{n} dropped: {why}" for why, n in records["dropped"].items()),
        f"calibration error {facts['calibration_error']:.3f} (test), accuracy {facts['accuracy']:.3f} at threshold {threshold:.3g}",
    ]
    if where["top1"] is not None:
        lines.append(
            f"source token found in {where['top1']:.0%} of {where['records']} records ({where['window2']:.0%} within two positions; "
            f"mean row of the heads {where['top1_mean_row']:.0%}); heads look {shift} positions behind the source"
        )
    return lines
