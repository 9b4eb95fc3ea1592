"""The page of the ledger: a row per claim and model, effect with interval beside its control and the paper's number.

Plain data in, one HTML file out. Rows are those of `headwise.claims.results.Row.to_json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.report.claims_tables import p_text, short, with_interval
from headwise.report.page.parts import details, header, note, section
from headwise.report.page.shell import Html, document, join, resource, tag, write_document
from headwise.report.transfer_matrix import TransferMatrix
from headwise.report.transfer_section import transfer_section

Told = Mapping[str, Any]
WIDTH, HEIGHT, EDGE = 150, 26, 6  # pixels of the drawing of an interval; of its margin
SHORTEST = 1e-12
MARKS = {"held": "✓", "not held": "✗", "not testable": "–", "old": "…", "": " "}
WORDS = {"": "not measured", "old": "measured by another version"}
FILTERS = ("held", "not held", "not testable", "")
COLUMNS = (  # heading, key that the column is sorted by
    ("Claim", "claim"), ("Model", "model"), ("Verdict", "verdict"), ("Effect (95 % CI)", "effect"), ("Control", "control"),
    ("p corrected", "p"), ("Paper", None),
)  # fmt: skip
DRAWN = "Dot and line: effect with its 95 % interval; red bar: limit of the rule; thin line: 0. Every row has a scale of its own."
RULE = (
    "A claim is not testable if the unablated model cannot do the task (its gate). Otherwise it held if every bound of its rule is met and, where it "
    "is tested, p is at most 0.05 after Benjamini and Hochberg's correction over the testable claims of its family. Rules, gates and data were "
    "written down before the numbers."
)


def write_page(
    rows: Sequence[Told],
    models: Sequence[str],
    path: Path,
    docs: str | None = None,
    matrices: Mapping[str, TransferMatrix] | None = None,
) -> Path:
    """Write the page.

    Args:
        rows: One per claim and model.
        models: In the order of columns.
        path: Of the page.
        docs: Folder or address of the documentation; None: names of pages are no links.
        matrices: Name of a model -> its matrix of detectors and tasks; a section each.

    Returns:
        `path`.

    Raises:
        HeadwiseError: The file cannot be written.
    """
    return write_document(path, page(rows, models, docs, matrices))


def page(
    rows: Sequence[Told], models: Sequence[str], docs: str | None = None, matrices: Mapping[str, TransferMatrix] | None = None
) -> str:
    """The whole document."""
    facts: dict[str, object] = {"Claims": len({row["claim"] for row in rows})}
    facts |= {model: _counts([row for row in rows if row["model"] == model]) for model in models}
    lead = "What papers claim of retrieval heads and their relatives, and what was measured here."
    title = f"Claims about heads: {', '.join(models)}" if models else "Claims about heads"
    body = join(
        header(title, lead, facts=facts),
        _comparison(rows, models) if len(models) > 1 else "",
        *(transfer_section(name, matrix) for name, matrix in (matrices or {}).items()),
        section("Every claim", _filters(rows, models), _table(rows, docs), note(DRAWN), note(RULE), id="claims"),
    )
    return document(f"headwise: {title}", body, styles=[resource("claims.css")], scripts=[resource("claims.js")])


def _counts(rows: Sequence[Told]) -> str:
    """`12 held, 3 not held, 4 not testable`; small versions are counted apart."""
    told = [f"{sum(row['verdict'] == word and not row['quick'] for row in rows)} {word}" for word in ("held", "not held", "not testable")]
    quick = sum(row["quick"] for row in rows)
    return ", ".join(told + ([f"{quick} quick"] if quick else []))


def pill(row: Told) -> Html:
    """The verdict as a coloured word."""
    word: str = row["verdict"]
    name = WORDS.get(word, word) + (" (quick)" if row["quick"] and word else "")
    return tag("span", MARKS[word], " ", name, class_=f"verdict {_class(word)}", title=row["why"] or None)


def _class(word: str) -> str:
    return word.replace(" ", "-") or "unmeasured"


def _comparison(rows: Sequence[Told], models: Sequence[str]) -> Html:
    """Claims down, models across, a mark in each cell; card by card."""
    cards: dict[str, dict[str, dict[str, Told]]] = {}
    for row in rows:
        if row["verdict"]:
            cards.setdefault(row["card"], {}).setdefault(row["claim"], {})[row["model"]] = row
    parts = []
    for card, claims in cards.items():
        head = tag("tr", tag("th", "Claim", scope="col"), *(tag("th", model, scope="col") for model in models))
        body = [
            tag("tr", tag("th", tag("span", key, class_="key"), " ", _any(each)["sentence"], scope="row"), *(_cell(each.get(m)) for m in models))
            for key, each in claims.items()
        ]
        summary = f"{card}: {_counts([row for each in claims.values() for row in each.values()])}"
        table = tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="matrix"), class_="scroll")
        parts.append(details(summary, table, open=len(cards) == 1))
    return section("Models side by side", *parts, lead="One mark per claim and model; effects are in the table below.")


def _any(each: Mapping[str, Told]) -> Told:
    return next(iter(each.values()))


def _cell(row: Told | None) -> Html:
    if row is None:
        return tag("td", "")
    effect = f"{row['verdict'] or 'not measured'}: {row['effect_name']} {with_interval(row['effect'], row['low'], row['high'])}"
    mark = tag("span", MARKS[row["verdict"]], class_=f"mark {_class(row['verdict'])}", title=effect, role="img", aria_label=effect)
    return tag("td", mark, tag("small", " quick") if row["quick"] and row["verdict"] else "")


def _filters(rows: Sequence[Told], models: Sequence[str]) -> Html:
    """What is shown: cards, models, verdicts, words."""
    def choice(name: str, label: str, values: Sequence[str]) -> Html:
        options = [tag("option", f"all {label}", value=""), *(tag("option", value, value=value) for value in values)]
        return tag("select", *options, data_filter=name, aria_label=label)

    def pressed(word: str) -> str:  # what was not measured is shown on demand, unless there is nothing else
        return "true" if word or not any(row["verdict"] for row in rows) else "false"

    verdicts = [
        tag("button", MARKS[word], " ", WORDS.get(word, word), type="button", data_verdict=word, aria_pressed=pressed(word), class_="toggle")
        for word in FILTERS if any(row["verdict"] == word for row in rows)
    ]  # fmt: skip
    search = tag("input", type="search", placeholder="words of a claim", data_filter="words", aria_label="words of a claim")
    return tag(
        "div",
        choice("card", "cards", list(dict.fromkeys(row["card"] for row in rows))),
        choice("model", "models", models) if len(models) > 1 else "",
        search,
        *verdicts,
        tag("span", "", class_="soft", id="shown", aria_live="polite"),
        class_="filters",
    )


def _table(rows: Sequence[Told], docs: str | None) -> Html:
    heads = [
        tag("th", tag("button", name, type="button", data_sort=key) if key else name, scope="col", aria_sort="none" if key else None)
        for name, key in COLUMNS
    ]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *(_row(row, docs) for row in rows)), class_="cards", id="ledger")
    return tag("div", table, class_="scroll")


def _row(row: Told, docs: str | None) -> Html:
    control: Sequence[str | Html] = ("–",)
    if row["control_name"]:
        control = named(row["control_name"]), with_interval(row["control"], row["control_low"], row["control_high"])
    cells = [
        tag("td", tag("strong", row["sentence"]), _about(row, docs)),
        tag("td", row["model"], data_name="Model", class_="model"),
        tag("td", pill(row), data_name="Verdict"),
        tag("td", *_effect(row), data_name="Effect", class_="effect"),
        tag("td", *control, data_name="Control", class_="number"),
        tag("td", p_text(row["p_corrected"]), data_name="p corrected", class_="number"),
        tag("td", row["paper"] or "–", data_name="Paper"),
    ]
    values = {"claim": row["claim"], "card": row["card"], "model": row["model"], "verdict": row["verdict"]}
    numbers = {"effect": row["effect"], "control": row["control"], "p": row["p_corrected"]}
    return tag(
        "tr",
        *cells,
        **{f"data_{name}": value for name, value in values.items()},
        **{f"data_{name}": "" if value is None else repr(value) for name, value in numbers.items()},
    )


def named(name: str) -> Html:
    """The name of a number, in small letters above it."""
    return tag("div", name.replace("_", " "), class_="soft")


def _effect(row: Told) -> list[str | Html]:
    """What is shown, its drawing, and the number that decides where that is another one."""
    shown: list[str | Html] = [named(row["effect_name"]), interval(row), tag("div", with_interval(row["effect"], row["low"], row["high"]))]
    if row["decided_by"] not in (row["effect_name"], row["control_name"]) and row["decided"] is not None:
        told = with_interval(row["decided"], row["decided_low"], row["decided_high"])
        shown.append(tag("div", f"{row['decided_by'].replace('_', ' ')} {told}", class_="soft"))
    return shown


def _about(row: Told, docs: str | None) -> Html:
    """Everything else about a claim, closed at first."""
    told = {
        "Metric": f"{row['effect_name']}: {row['metric']}",
        "Rule": row["rule"],
        "Missed": row["missed"],
        "Gate": row["gate"],
        "Why": row["why"],
        "Control": f"{row['control_name']}: {row['controls']}" if row["control_name"] else row["controls"],
        "Data": row["data"],
        "Tries": row["tries"],
        "p": "" if row["p"] is None else f"{p_text(row['p'])}, before the correction",
        "Numbers": "; ".join(f"{name} {with_interval(*ends)}" for name, ends in row["numbers"].items()),
        "Note": row["note"],
        "Run": f"headwise claims run --claim {row['claim']}",
    }
    source = f"{row['card']}, {row['place']}"
    link = tag("a", source, href=f"{docs.rstrip('/')}/{_address(docs, row['page'])}") if docs else source
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in told.items() if value]
    top = tag("div", tag("span", row["claim"], class_="key"), " · ", link, class_="soft")
    return join(top, details("Details", tag("dl", *facts, class_="about")))


def _address(docs: str, source: str) -> str:
    """The page of a method: the Markdown file of a folder that holds it, else the built page."""
    return source if (Path(docs) / source).is_file() else source.removesuffix(".md") + ".html"


def interval(row: Told) -> Html:
    """Effect with its interval (a dot on a line), the limit of the rule (an upright bar) and 0 (a grey line), drawn on a scale of their own."""
    effect, low, high = row["effect"], row["low"], row["high"]
    if effect is None:
        return Html()
    limit = row["limit"] if row["decided_by"] == row["effect_name"] else None
    ends = [value for value in (effect, low, high, 0.0, limit) if value is not None]
    least, most = min(ends), max(ends)
    span = max(most - least, SHORTEST)

    def place(value: float) -> str:
        return f"{EDGE + (WIDTH - 2 * EDGE) * (value - least) / span:.1f}"

    middle = HEIGHT / 2
    parts = [_line(place(0.0), 3, place(0.0), HEIGHT - 3, "zero")]
    if low is not None and high is not None:
        parts.append(_line(place(low), middle, place(high), middle, "range"))
    if limit:
        parts.append(_line(place(limit), 3, place(limit), HEIGHT - 3, "limit"))
    parts.append(tag("circle", cx=place(effect), cy=middle, r=4.5, class_="dot"))
    label = f"{row['effect_name']} {short(effect)}" + (f", limit {short(limit)}" if limit else "")
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", width=WIDTH, height=HEIGHT, class_="interval", role="img", aria_label=label)


def _line(x1: str, y1: float, x2: str, y2: float, kind: str) -> Html:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)
