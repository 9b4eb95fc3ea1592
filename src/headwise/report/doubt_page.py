"""The page of doubt: how often answers are taken back, which heads make a model do so, and what calms it. Plain data in, one HTML page out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwise.heads.types import HeadScores, HeadSet
from headwise.report import doubt_tables as told
from headwise.report.canvas import subject
from headwise.report.compression_page import merged
from headwise.report.doubt_tables import Row
from headwise.report.explorer_data import group_size, head_columns, head_table
from headwise.report.explorer_figures import map_height
from headwise.report.numbers import count, scored
from headwise.report.page.charts import SIGNED, YES, heat_map, lines, ranges
from headwise.report.page.parts import details, figure, figures, header, marked_text, note, section, table, text_key
from headwise.report.page.shell import Html, document, join, tag
from headwise.report.tables import UNKNOWN

Data = Mapping[str, Any]
WIDTH, NAMED = 600, 3  # pixels of a chart of rates; heads of a trial that are named, all are in its tooltip
ARMS = {"right": "right answer", "wrong": "wrong answer"}
PARTS = {"select": "Questions of the choice", "test": "Test questions"}
MARKS = {"held": "✓", "not held": "✗", "not testable": "–"}
CURVES = {
    "chosen": ("chosen heads", "$red"),
    "random": ("random heads", "$grey"),
    "weakest": ("weakest heads", "$blue"),
    "retrieval": ("retrieval heads", "$green"),
}
CHANGES = {"right": ("right answers kept", "$blue"), "wrong": ("wrong answers kept", "$orange")}
STYLE = """
.verdict.held{color:var(--good)}.verdict.not-held{color:var(--bad)}.verdict.not-testable{color:var(--mid)}
.w{background:color-mix(in srgb,var(--orange) calc(var(--w,0)*55%),transparent)}
.names{white-space:nowrap}
.turn{border-left:3px solid var(--line);padding:.1rem 0 .1rem .9rem;margin:.8rem 0;max-width:none}
.turn h3{margin:0;color:var(--soft);font-weight:600;font-size:.88rem}
.turn p{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0}
.replies{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:0 1.4rem}
.turn.before{border-color:var(--orange)}.turn.after{border-color:var(--blue)}
"""


def doubt_page(scores: HeadScores, result: Data, measured: Data | None = None) -> str:
    """The whole document.

    Args:
        scores: Of the doubt detector.
        result: Of `headwise.methods.doubt.calm.calm`. `dialogue` and `side_effects` may be missing.
        measured: Of `Measured.to_json`, with all challenges; None if they were not measured apart.

    Returns:
        HTML that loads nothing from elsewhere.

    Raises:
        HeadwiseError: The result is none of calming, its heads are not those of the scores' model, or no head is scored.
    """
    chosen = told.checked_calm(result)["chosen"]
    model = subject(result) or subject(scores.provenance) or "a model without a name"
    facts = {
        "Remedy": chosen["remedy"],
        "Heads": chosen["k"],
        "Headline": f"{told.points(chosen['headline'])} points",
        "Trials of the choice": len(told.best_first(result["selection"])),
    }
    lead = "How often the model takes an answer back when it is challenged, which heads make it do so, and what calms it."
    body = join(
        header(f"Doubt of {model}", lead, facts=facts),
        _verdict(result),
        _rates(scores, result, measured),
        _heads(scores, chosen),
        _curves(result),
        _dialogue(result.get("dialogue")),
        _side_effects(result.get("side_effects") or ()),
        _trials(result),
    )
    return document(f"headwise: doubt of {model}", body, styles=[STYLE])


def _verdict(result: Data) -> Html:
    verdict = str(result["chosen"]["verdict"])
    pill = tag("span", MARKS.get(verdict, ""), " ", verdict, class_=f"verdict {verdict.replace(' ', '-')}")
    said = [tag("p", line[:1].upper() + line[1:] + ".") for line in told.calm_lines(result)]
    rule = (
        "The rule: on questions that the choice has not seen, the headline (change of kept right answers minus change of kept wrong ones) lies "
        "above 0 with its whole 95 % interval, and above that of 95 % of random sets of heads from the same layers."
    )
    return section("What the test says", *said, _trial_table(told.compared(result), "Test questions"), note(rule), aside=pill)


def _rates(scores: HeadScores, result: Data, measured: Data | None) -> Html:
    given = [("All challenges", measured["rates"])] if measured and measured.get("rates") else []
    rates = result.get("rates_of_all") or result["rates"]  # a result of an earlier version lists what was used alone
    given += [(name, rates.get(part) or ()) for part, name in PARTS.items()]
    gate = told.gate_of(result, scores.provenance.get("options"))
    drawn = [_rates_figure(name, rows, gate) for name, rows in given if rows]
    read = (measured or result).get("read_by", result.get("read_by"))
    by_margin = "Too few replies begin with yes or no, so an answer counts as taken back where the log-odds of keeping it are below their mean."
    return section(
        "How often answers are taken back",
        figures(*drawn),
        note(by_margin) if read == "margin" else "",
        lead=f"Challenges from neutral to pressing, after a right and after a wrong first answer; 95 % intervals. Dashed line: a challenge counts "
        f"where at least {gate:.0%} of the right answers are taken back.",
    )


def _rates_figure(name: str, rows: Sequence[Row], gate: float) -> Html:
    flips = [row["flips"] for row in rows]
    data = {"challenge": [row["challenge"] for row in rows], "first": [ARMS.get(row["arm"], row["arm"]) for row in rows]}
    data |= {end: [round(float(found[i]), 4) for found in flips] for i, end in enumerate(("share", "low", "high"))}
    data |= {"kept": [round(float(row["kept"][0]), 4) for row in rows], "items": [row["items"] for row in rows]}
    data |= {outcome: [row["outcomes"].get(outcome, 0) for row in rows] for outcome in told.OUTCOMES}
    data["margin"] = [round(float(row["margin"][0]), 3) for row in rows]
    columns = {
        "challenge": "Challenge",
        "first": "First answer",
        "share": "Answers taken back",
        "low": "95 % CI from",
        "high": "to",
    }
    columns |= {
        "kept": "Kept",
        "items": "Dialogues",
        "suggested": "Suggested answer",
        "other": "Another answer",
        "incoherent": "Incoherent",
    }
    chart = ranges(
        data, columns | {"margin": "Margin (nats)"}, x="share", low="low", high="high", y="challenge", series="first", x_domain=(0, 1),
        limits=[gate], label=f"Share of answers taken back, by challenge and first answer. {name}", name=f"rates-{name.split()[0].lower()}",
    )  # fmt: skip
    counting = [row["challenge"] for row in rows if row["arm"] == "right" and row["counts"]]
    passed = f"Challenges that count: {', '.join(counting)}." if counting else "No challenge counts."
    return figure(chart, passed, title=name, width=WIDTH)


def _heads(scores: HeadScores, chosen: Row) -> Html:
    known = scored(scores)
    heads = HeadSet.of(list(chosen["heads"]), scores.shape, model="the model of these scores")
    marked = {str(head) for head in heads}
    data = head_table(scores)
    data["chosen"] = [YES if name in marked else "no" for name in data["name"]]
    names = told.beside(scores)
    for name in names:
        data[name] = [None if np.isnan(v) else round(float(v), 4) for v in scores.tables[name].ravel()]
    most = float(np.abs(known).max()) or 1.0
    columns = head_columns(scores) | {"chosen": "Chosen"} | {name: told.BESIDE[name] for name in names}
    chart = heat_map(
        data, columns, x="head", y="layer", value="score", domain=(-most, most), scheme=SIGNED, marked="chosen",
        groups=group_size(scores), height=map_height(scores.shape[0]),
        label=f"Scores of {scores.shape[0]} layers by {scores.shape[1]} heads; the chosen heads are framed", name="doubt-map",
    )  # fmt: skip
    caption = f"Framed: the {count(len(heads), 'head')} of the chosen remedy."
    if np.isnan(scores.values).any():
        gone = told.left_out(scores)
        caption += " Crossed out: not scored" + (
            f", among them {count(len(gone), 'retrieval head')} ({', '.join(gone)})." if gone else "."
        )
    return section(
        "Heads of both signs",
        figure(chart, caption, width=max(320, 46 * scores.shape[1] + 140)),
        details("The strongest heads of both signs", *_sides(scores, names)),
        lead=_meaning(scores),
    )


def _meaning(scores: HeadScores) -> str:
    """What the two colours of the map mean."""
    options = scores.provenance.get("options")
    name = options.get("score") if isinstance(options, Mapping) else None
    if name == "knock_out":
        return (
            "Score: how much the margin of keeping a right answer rises without the head, in nats. Orange heads take answers back, blue heads hold "
            "on to them; in the middle nothing happens."
        )
    return f"Score: {name or scores.score}. Orange: above 0, the head takes answers back; blue: below 0, it holds on to them."


def _sides(scores: HeadScores, names: Sequence[str]) -> list[Html]:
    headings = ("Head", "Score", *(told.BESIDE[name] for name in names))
    captions = ("They take answers back", "They hold on to answers")
    sides = zip(captions, told.both_signs(scores), strict=True)
    shown = [
        table(
            headings,
            [told.head_cells(scores, head, names) for head in side],
            numbers=range(1, len(headings)),
            stacked=False,
            caption=name,
        )
        for name, side in sides
        if side
    ]
    known = [
        text for name, text in told.EXPLAINED.items() if name in names or (name == "knock_out" and "knock_out_wrong" in names)
    ]
    return [*shown, note(" ".join(known))] if known else shown


def _curves(result: Data) -> Html:
    chosen, rows = result["chosen"], [row for row in result["test"] if row["kind"] != "none"]
    data = _headlines(rows)
    ks = sorted(set(data["k"]))
    axis: dict[str, Any] = {"x": "k", "x_values": ks, "log_x": ks[-1] > 10 * ks[0], "limits": [0.0]}
    columns = {
        "heads": "Heads",
        "k": "Heads treated, K",
        "headline": "Headline (points)",
        "low": "From",
        "high": "To",
        "sets": "Sets",
    }
    headline = lines(
        data, columns, y="headline", low="low", high="high", series="heads", colours=dict(CURVES.values()), name="headline-by-k",
        label="Headline of the chosen remedy and of its controls by number of heads, test questions", **axis,
    )  # fmt: skip
    own = sorted((row for row in rows if row["kind"] == "chosen"), key=lambda row: row["k"])
    points = [(CHANGES[arm][0], row["k"], round(100 * row[arm], 2)) for arm in CHANGES for row in own]
    parts = dict(zip(("answers", "k", "change"), map(list, zip(*points, strict=True)), strict=True))
    changes = lines(
        parts, {"answers": "Answers", "k": "Heads treated, K", "change": "Change (points)"}, y="change", series="answers",
        colours=dict(CHANGES.values()), name="changes-by-k", label="Change of kept right and kept wrong answers by number of heads", **axis,
    )  # fmt: skip
    drawn = f"{count(chosen['draws'], 'random set')} at K = {chosen['k']}"
    if chosen["random_95"] is not None:
        drawn += f", 95 % of them at or below {told.points(chosen['random_95'])} points; fewer at every other K"
    return section(
        "How many heads",
        figures(
            figure(
                headline,
                f"Bands: 95 % intervals over questions; of random heads, from the same layers, the range of all draws ({drawn}). "
                "Weakest: scores next to 0.",
                title="Headline",
            ),
            figure(changes, "What calms a model raises the first line and not the second.", title="Kept answers, chosen heads"),
        ),
        lead=f"The remedy {chosen['remedy']} at K heads, on the test questions. K = {chosen['k']} was chosen on other questions. Dashed line: no "
        "change.",
    )


def _headlines(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Points of the headline's chart in percentage points, one per kind and K; random sets by their mean and range."""
    found: list[tuple[Any, ...]] = []
    for kind, (name, _) in CURVES.items():
        for k in sorted({row["k"] for row in rows if row["kind"] == kind}):
            some = [row for row in rows if (row["kind"], row["k"]) == (kind, k)]
            values = [row["headline"] for row in some]
            low, high = (min(values), max(values)) if kind == "random" else some[0]["interval"]
            found.append((name, k, *(round(100 * float(v), 2) for v in (np.mean(values), low, high)), len(some)))
    names = ("heads", "k", "headline", "low", "high", "sets")
    return dict(zip(names, map(list, zip(*found, strict=True)), strict=True))


def _dialogue(one: Data | None) -> Html:
    """A challenge with what the chosen heads look at, and the replies before and after; nothing where none was recorded."""
    if not one:
        return Html()
    weights = [max(0.0, float(weight)) for weight in one["weights"]]
    full = max(weights, default=0.0) or 1.0
    texts = [str(text) for text in one["tokens"]]
    if texts:
        texts[0] = texts[0].lstrip("\n")
    pieces = [(text, weight / full, False) for text, weight in zip(texts, weights, strict=True)]
    named = ", ".join(map(str, one["heads"]))
    left = f" {one['left']:.0%} of it falls on what stands in front of these tokens." if one.get("left") is not None else ""
    return section(
        "One dialogue",
        _turn("First answer", one["said"]),
        tag(
            "div",
            tag("h3", "The challenge, shaded by attention"),
            marked_text(merged(pieces), scale=1.0, label="The challenge"),
            class_="turn",
        ),
        text_key(weights=f"mean attention of the chosen heads, from 0 to {full:.2g}"),
        tag("div", _turn("Reply before", one["before"], "before"), _turn("Reply after", one["after"], "after"), class_="replies"),
        note(f"Attention of {named} from the token in front of the reply, before the remedy.{left}"),
        lead=f"Question {one['item']}, challenge {one['challenge']}: the reply of the unchanged model, and that of the calmed one.",
    )


def _turn(name: str, said: object, kind: str = "") -> Html:
    return tag("div", tag("h3", name), tag("p", said if str(said).strip() else "(nothing)"), class_=f"turn {kind}".strip())


def _side_effects(rows: Sequence[Row]) -> Html:
    if not rows:
        return Html()
    shown = []
    for row in rows:
        change = row["calmed"] - row["unchanged"]
        items = UNKNOWN if row.get("n") is None else f"{row['n']:,}"
        shown.append(
            (
                str(row["what"]).removeprefix("lm-eval:"),
                f"{row['unchanged']:.3f}",
                f"{row['calmed']:.3f}",
                f"{change:+.3f}",
                items,
            )
        )
    listed = table(("What", "Unchanged", "Calmed", "Change", "Items"), shown, numbers=(1, 2, 3, 4))
    lead = "The chosen remedy on other work than challenges. Higher is better, but for perplexity."
    return section("Side effects", listed, lead=lead)


def _trials(result: Data) -> Html:
    best, tested = told.best_first(result["selection"]), [row for row in result["test"] if row["kind"] != "none"]
    nothing = [row for part in ("selection", "test") for row in result[part] if row["kind"] == "none"][:2]
    lead = "Kept answers in %, gains in points. p: sign flips over questions; of the choice corrected over all its trials (Benjamini and Hochberg)."
    return section(
        "All trials",
        details(
            f"Questions of the choice: {count(len(best), 'trial')}", _trial_table([*nothing[:1], *best], named=True), open=True
        ),
        details(f"Test questions: {count(len(tested), 'trial')}", _trial_table([*nothing[1:], *tested], named=True)),
        lead=lead,
    )


def _trial_table(rows: Sequence[Row], caption: str = "", named: bool = False) -> Html:
    """One line per trial; with the names of heads on demand."""
    headings = (*told.COLUMNS, "Names") if named else told.COLUMNS
    body = [(*told.trial_cells(row), _names(row["heads"])) if named else told.trial_cells(row) for row in rows]
    return table(headings, body, numbers=range(2, len(told.COLUMNS)), stacked=False, caption=caption)


def _names(heads: Sequence[str]) -> Html:
    """The first heads of a trial, and all of them in a tooltip."""
    more = f" +{len(heads) - NAMED}" if len(heads) > NAMED else ""
    return tag("span", ", ".join(heads[:NAMED]) + more or UNKNOWN, class_="names", title=", ".join(heads) if more else None)
