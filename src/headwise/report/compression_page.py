"""The page of `headwise bench cache`: recall against bytes, and what each method keeps of one text. Plain data in, one HTML file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from headwise.report.compression import NOTE, UNKNOWN, Row, bytes_text, checked_rows, gate_notes, label_of
from headwise.report.numbers import public_name
from headwise.report.page.charts import lines
from headwise.report.page.parts import Marked, details, figure, figures, header, marked_text, note, section, table, text_key
from headwise.report.page.shell import Html, document, join, slug, tag, write_document

Data = Mapping[str, Any]
SHOWN = 1500  # tokens of a context at most
PLACES = {"inside": "inside of what is compressed", "outside": "asked after the compression"}
COLUMNS = ("Method", "Budget", "Exact", "95 % CI", "Vs. full", "p", "Survival", "Held", "Of full")
STYLE = ".kept{border-top:1px solid var(--line);padding:.8rem 0 .2rem}.kept h3{margin:0}"


def write_page(result: Data, example: Data, path: Path) -> Path:
    """Write the page.

    Args:
        result: of the benchmark.
        example: one context, and per method the share of KV heads (of all layers) that keep each token.
        path: of the page.

    Returns:
        `path`.

    Raises:
        HeadwiseError: the result is not one of a cache benchmark, or the file cannot be written.
    """
    return write_document(path, page(result, example))


def page(result: Data, example: Data) -> str:
    """The whole document; arguments and errors as for `write_page`."""
    rows, model = checked_rows(result), public_name(result["model"])
    labels = list(dict.fromkeys(map(label_of, rows)))
    drawn = [_recall([row for row in rows if label_of(row) == label], label) for label in labels]
    facts = {"Contexts per task": result["items"], "Methods": len({row["method"] for row in rows}), "Seed": result["seed"]}
    body = join(
        header(f"Compressed caches of {model}", facts=facts),
        section(
            "Recall against bytes",
            figures(*drawn),
            *(note(f"{label}: {text}") for label, text in gate_notes(result).items()),
            lead="Share of correct answers against the bytes that the cache holds. Bands: 95 % confidence intervals over contexts. "
            "Dashed line: the full cache.",
        ),
        _kept(example),
        section(
            "Numbers",
            *(details(label, _table([r for r in rows if label_of(r) == label]), open=i == 0) for i, label in enumerate(labels)),
            note(NOTE),
        ),
    )
    return document(f"headwise: compressed caches of {model}", body, styles=[STYLE])


def _recall(rows: Sequence[Row], label: str) -> Html:
    full, others = rows[0], rows[1:]
    share = [round(row["bytes"] / row["bytes_full"], 4) for row in others]
    data: dict[str, list[Any]] = {"method": [row["method"] for row in others], "share": share}
    data |= {name: [row[name] for row in others] for name in ("budget", "exact", "low", "high", "survival")}
    columns = {
        "method": "Method",
        "budget": "Budget",
        "share": "Bytes held, share of the full cache",
        "exact": "Correct answers",
        "low": "95 % CI from",
        "high": "to",
        "survival": "Answer tokens kept",
    }
    chart = lines(
        data,
        columns,
        x="share",
        y="exact",
        low="low",
        high="high",
        series="method",
        x_domain=(0, max([*share, 0.0]) * 1.05 or 1.0),
        y_domain=(0, 1),
        limits=[round(float(full["exact"]), 3)],
        label=f"Correct answers against bytes held, {label}",
        name=f"recall-{slug(label)}",
    )
    return figure(chart, title=label)


def _table(rows: Sequence[Row]) -> Html:
    shown = []
    for row in rows:
        compared = (f"{row['difference']:+.2f}", f"{row['p']:.2g}") if row["difference"] is not None else (UNKNOWN, UNKNOWN)
        shown.append(
            (
                row["method"],
                UNKNOWN if row["budget"] is None else f"{row['budget']:g}",
                f"{row['exact']:.2f}",
                f"{row['low']:.2f}–{row['high']:.2f}",
                *compared,
                UNKNOWN if row["survival"] is None else f"{row['survival']:.2f}",
                bytes_text(row["bytes"]),
                f"{row['bytes'] / row['bytes_full']:.1%}",
            )
        )
    return table(COLUMNS, shown, numbers=range(1, len(COLUMNS)), stacked=False)


def _kept(example: Data) -> Html:
    pieces, answers = example["pieces"], example["answers"]
    start, stop = _window(len(pieces), answers)
    texts = []
    for one in example["methods"]:
        held = sum(one["kept"]) / len(pieces)
        budget = "" if one["budget"] is None else f", budget {one['budget']:g}"
        marked = [(pieces[i], one["kept"][i], _inside(i, answers)) for i in range(start, stop)]
        texts.append(
            tag(
                "div",
                tag("h3", one["method"]),
                note(f"{held:.1%} of the positions kept, mean over layers and KV heads{budget}"),
                marked_text(merged(marked), scale=1.0),
                class_="kept",
            )
        )
    cut = f" Tokens {start} to {stop} of {len(pieces)} are shown." if stop - start < len(pieces) else ""
    return section(
        "Tokens that are kept",
        text_key(weights="share of KV heads (of all layers) that keep a token", marks={"answer": "of the question"}),
        *texts,
        lead=f"The first context of the task {example['task']}, with the question {PLACES.get(example['question'], example['question'])}.{cut}",
    )


def merged(pieces: Sequence[tuple[str, float, bool]]) -> list[Marked]:
    """Neighbours that are held to the same twentieth, and marked alike, as one piece."""
    keyed = [(text, round(20 * share) / 20, mark) for text, share, mark in pieces]
    return [
        ("".join(text for text, *_ in group), share, "answer" if mark else None)
        for (share, mark), group in groupby(keyed, lambda one: one[1:])
    ]


def _window(length: int, answers: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The stretch that is shown: all, or as much around the first answer."""
    middle = answers[0][0] if answers else 0
    start = max(0, min(middle - SHOWN // 2, length - SHOWN))
    return start, min(length, start + SHOWN)


def _inside(i: int, spans: Sequence[Sequence[int]]) -> bool:
    return any(start <= i < stop for start, stop in spans)
