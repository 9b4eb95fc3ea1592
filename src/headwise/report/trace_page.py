"""The page of `headwise trace`: the answer, and on a click the sources of each token. Plain data in, one HTML file out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwise.report.numbers import count, public_name
from headwise.report.page.parts import header, note, section, table
from headwise.report.page.shell import Html, document, join, resource, tag, write_document

Data = Mapping[str, Any]
MEANING = {"read": "read from the prompt", "remembered": "remembered", "unsure": "unsure"}


def write_page(data: Data, path: Path) -> Path:
    """Write the page.

    Args:
        data: of `cli.trace_data`.
        path: of the page.

    Returns:
        `path`.

    Raises:
        HeadwiseError: the file cannot be written.
    """
    return write_document(path, page(data))


def page(data: Data) -> str:
    """The whole document."""
    model, said = (
        public_name(data["model"]),
        [token for token in data["tokens"] if not token["special"] and token["text"].strip()],
    )
    counts = {label: sum(token["label"] == label for token in said) for label in MEANING}
    facts: dict[str, object] = {"Tokens": len(said)} | {label.capitalize(): n for label, n in counts.items()}
    low, high = data["band"]
    body = join(
        header(f"Where this answer comes from, read by {model}", "A click on a token shows where it was read.", facts=facts),
        section(
            "Answer",
            tag("p", *(_token(i, token) for i, token in enumerate(data["tokens"]) if not token["special"]), class_="said"),
            _key(low, high),
            tag("div", class_="source", role="status", aria_live="polite"),
        ),
        section(
            "Passages",
            *(_passage(i, passage) for i, passage in enumerate(data["passages"])),
            lead="From the passage that most of the answer was read from to the one that least was."
            if not _caused(data)
            else "From the passage that caused the answer most. drop: nats by which the answer's log-probability falls when the passage is left out.",
        ),
        _about(data),
    )
    shown = {"tokens": data["tokens"], "passages": [{"start": p["start"], "name": p["name"]} for p in data["passages"]]}
    return document(
        f"headwise: where an answer comes from, read by {model}",
        body,
        data=shown,
        styles=[resource("trace.css")],
        scripts=[resource("trace.js")],
    )


def _caused(data: Data) -> bool:
    return any(passage["drop"] is not None for passage in data["passages"])


def _token(place: int, token: Data) -> Html:
    told = f"{MEANING[token['label']]}, probability {token['probability']:.2f}"
    return tag(
        "button",
        token["text"],
        type="button",
        class_=f"token {token['label']}",
        data_token=place,
        title=told,
        aria_pressed="false",
    )


def _key(low: float, high: float) -> Html:
    words = {
        "read": f"from the prompt: probability above {high:g}",
        "remembered": f"below {low:g}",
        "unsure": f"{low:g} to {high:g}",
    }
    return tag(
        "p",
        *(tag("span", tag("span", label, class_=f"token {label}"), f" {text}") for label, text in words.items()),
        class_="key",
    )


def _passage(place: int, passage: Data) -> Html:
    told = [f"{passage['share']:.0%} of the scores of all passages"]
    if passage["drop"] is not None:
        told.append(f"drop {passage['drop']:+.3f} nats")
    top = tag("header", tag("h3", passage["name"]), tag("span", ", ".join(told), class_="soft"))
    words = (tag("span", piece, data_at=passage["start"] + i) for i, piece in enumerate(passage["pieces"]))
    return tag("div", top, tag("p", *words, class_="marked"), class_="passage", data_passage=place)


def _about(data: Data) -> Html:
    probe = data["probe"]
    rows = [
        (name, f"{row['auc']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")
        for name, row in (probe["auc"] or {}).items()
        if row is not None
    ]
    measured = table(("What counts as remembered", "AUC", "95 % CI"), rows, numbers=(1, 2)) if rows else ""
    named = ", ".join(probe["heads"])
    return section(
        "How this was measured",
        measured,
        note(f"Read by {count(len(probe['heads']), 'head')}: {named}."),
        note(
            "A probability says how likely it is that the token was copied from the prompt; it is calibrated on questions with swapped answers."
        ),
    )
