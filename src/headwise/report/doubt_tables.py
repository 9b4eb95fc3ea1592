"""Doubt in the console: how often answers are taken back, heads of both signs, and remedies beside their controls. Plain data in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, HeadScores
from headwise.report.canvas import subject
from headwise.report.numbers import count, scored
from headwise.report.tables import UNKNOWN, titled_table

Row = Mapping[str, Any]
GATE = 0.15  # of `headwise.runtime.doubt_questions`, where no file says another one
SELECTED = 10  # trials of the choice that the console lists, the best ones
OUTCOMES = ("suggested", "other", "incoherent")  # of replies that do not keep the answer
BESIDE = {"case1": "Case 1", "case3": "Case 3", "misleading": "Misl.", "doubt": "Mass"}
BESIDE |= {"knock_out": "Out, right", "knock_out_wrong": "Out, wrong"}
MOST = 5  # tables on either side in the console: more do not fit into 80 columns
"""Tables that are shown beside scores, and their headings."""
EXPLAINED = {
    "case1": "Case 1: looks at the option that leaves the answer, in dialogues that flipped.",
    "case3": "Case 3: the same in dialogues that held.",
    "misleading": "Misl.: Case 1 - Case 3.",
    "doubt": "Mass: attention to words of doubt.",
    "knock_out": "Out: change of the margin in nats without the head, by first answer.",
}
NAMES = 9  # letters of a challenge's name in the console; longer names go on in the next line
NEEDED = {"remedy", "kind", "k", "draw", "heads", "kept_right", "kept_wrong", "right", "wrong", "headline", "interval", "p"}
JUDGED = {"random_95", "random_mean", "rank_p", "draws", "optimism", "selected_headline", "yes_bias", "verdict"}
NOT_CALM = "this is no result of calming a model; give the JSON that calming wrote"


def rates_table(rates: Sequence[Row]) -> Table:
    """How often answers are kept and taken back, one line per challenge and first answer.

    Args:
        rates: Rows of `Measured.rates`; shares in [0, 1], margins in nats.

    Raises:
        HeadwiseError: There is no row.
    """
    if not rates:
        raise HeadwiseError("there are no rates to show: no answer was challenged")
    table = _compact("How often answers are taken back", "")
    table.add_column("Challenge", overflow="fold", min_width=NAMES)
    table.add_column("First", no_wrap=True)
    for name in ("Items", "Kept", "95 % CI", "Taken\nback", "95 % CI", "Sugg.", "Other", "Incoh.", "Margin"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Gate", no_wrap=True)
    before = None
    for row in rates:
        known = row["challenge"] if row["challenge"] != before else ""
        shares = [text for name in ("kept", "flips") for text in share_and_bounds(row[name])]
        outcomes = (str(row["outcomes"].get(name, 0)) for name in OUTCOMES)
        cells = [known, row["arm"], str(row["items"]), *shares, *outcomes, f"{row['margin'][0]:+.2f}", _gate(row)]
        table.add_row(*map(Text, cells))  # names of challenges come from files and are no markup
        before = row["challenge"]
    table.caption = (
        "First: whether the first answer is right. Kept and taken back: shares in %.\n"
        "Sugg., other, incoh.: how many replies hold the suggested answer, another one,\n"
        "none or several. Margin: mean log-odds of keeping the answer, in nats.\n"
        "Gate: yes if enough right answers are taken back, but not all of them."
    )
    return table


def _gate(row: Row) -> str:
    return "" if row["arm"] != "right" else "yes" if row["counts"] else "no"


def gate_of(*told: object) -> float:
    """The share of right answers from which a challenge counts.

    Args:
        *told: Results or options; the first one that is a mapping with a `gate` decides.
    """
    return next((float(one["gate"]) for one in told if isinstance(one, Mapping) and "gate" in one), GATE)


def share_and_bounds(found: Sequence[float]) -> tuple[str, str]:
    """A share and its interval, in per cent.

    Args:
        found: Share, lower and upper end, in [0, 1].

    Returns:
        As `15` and `8–26`.
    """
    share, low, high = found
    return f"{100 * share:.0f}", f"{100 * low:.0f}–{100 * high:.0f}"


def both_signs(scores: HeadScores, k: int = 8) -> tuple[list[HeadId], list[HeadId]]:
    """The heads with the highest scores and those with the lowest ones.

    Args:
        scores: At least two different ones.
        k: How many of each at most. Only scores above 0 count as high and only those below 0 as low where there are scores below 0.

    Returns:
        Highest first, and lowest first; no head is in both.

    Raises:
        HeadwiseError: A k below 1, or scores that rank nothing, see `HeadScores.ranking`.
    """
    if k < 1:
        raise HeadwiseError(f"the number of heads to list must be at least 1; got {k}")
    order, values = scores.ranking(), scores.values
    if scored(scores).min() < 0:
        return [h for h in order if values[h] > 0][:k], [h for h in reversed(order) if values[h] < 0][:k]
    half = min(k, len(order) // 2) or 1
    return order[:half], list(reversed(order[half:]))[:half]


def beside(scores: HeadScores) -> list[str]:
    """Names of the tables worth showing beside the scores: those of `BESIDE` that the file has, but for one that is the score itself."""
    found = (name for name in BESIDE if name in scores.tables and scores.tables[name].shape == scores.shape)
    known = ~np.isnan(scores.values)
    return [name for name in found if not np.array_equal(scores.tables[name][known], scores.values[known], equal_nan=True)]


def left_out(scores: HeadScores) -> list[str]:
    """Names of the retrieval heads that were left out of the scores."""
    return [str(head) for head in scores.provenance.get("left_out") or ()]


def both_signs_table(scores: HeadScores, k: int = 8) -> Table:
    """Heads that take answers back beside heads that hold on to them, with their tables.

    Args:
        scores: Of the doubt detector.
        k: How many of each.

    Raises:
        HeadwiseError: As `both_signs`.
    """
    sides, names = both_signs(scores, k), beside(scores)
    if len(names) > MOST:
        names.remove("misleading")  # the difference of two others
    table = _compact("Heads that take answers back, and heads that hold on to them", subject(scores.provenance))
    for side in ("Take back", "Hold on"):
        table.add_column(side, justify="left")
        for name in ("Score", *(BESIDE[one] for one in names)):
            table.add_column(name, justify="right")
    for i in range(max(map(len, sides))):
        table.add_row(*(cell for side in sides for cell in head_cells(scores, side[i] if i < len(side) else None, names)))
    named = str(scores.provenance.get("options", {}).get("score", scores.score))
    lines = [f"Score: {named}; the highest on the left, the lowest on the right."]
    lines += [text for name, text in EXPLAINED.items() if name in names or (name == "knock_out" and "knock_out_wrong" in names)]
    if gone := left_out(scores):
        lines.append(f"Left out: {count(len(gone), 'retrieval head')}: {', '.join(gone)}")
    table.caption = Text("\n".join(lines))
    return table


def head_cells(scores: HeadScores, head: HeadId | None, names: Sequence[str]) -> list[str]:
    """A head, its score, and its value in some tables; empty for no head."""
    if head is None:
        return [""] * (2 + len(names))
    values = [(float(scores.tables[name][head]), "+.2f" if name.startswith(("knock", "misl")) else ".2f") for name in names]
    return [str(head), f"{scores.values[head]:+.2f}", *(UNKNOWN if math.isnan(v) else format(v, how) for v, how in values)]


def checked_calm(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result of `calm`.

    Raises:
        HeadwiseError: It is none.
    """
    chosen, rates = result.get("chosen"), result.get("rates")
    if not isinstance(rates, Mapping) or not isinstance(chosen, Mapping) or not set(chosen) >= (NEEDED | JUDGED):
        raise HeadwiseError(NOT_CALM)
    for part in ("selection", "test"):
        rows = result.get(part)
        if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) and set(row) >= NEEDED for row in rows):
            raise HeadwiseError(NOT_CALM)
    return result


def best_first(rows: Iterable[Row]) -> list[Row]:
    """The trials by their headline; of equal ones those with fewer heads first. The unchanged model is no trial."""
    return sorted((row for row in rows if row["kind"] != "none"), key=lambda row: (-row["headline"], row["k"]))


def compared(result: Mapping[str, Any]) -> list[Row]:
    """Test rows at the chosen K: none, chosen, random, weakest, retrieval; what there is of them.

    Returns:
        Rows; that of random sets holds the means over the draws, with a `label`, and `random_95` in place of an interval.
    """
    chosen, rows = result["chosen"], result["test"]
    own = {kind: [row for row in rows if row["kind"] == kind and row["k"] in (0, chosen["k"])] for kind in KINDS}
    found: list[Row] = [*own["none"][:1], *own["chosen"][:1]]
    if own["random"]:
        means = {name: float(np.mean([row[name] for row in own["random"]])) for name in SHARES}
        told = {"label": f"{len(own['random'])} random", "interval": None, "p": None, "random_95": chosen["random_95"]}
        found.append({"remedy": chosen["remedy"], "kind": "random", "k": chosen["k"]} | means | told)
    return [*found, *own["weakest"][:1], *own["retrieval"][:1]]


KINDS = ("none", "chosen", "random", "weakest", "retrieval")
SHARES = ("kept_right", "kept_wrong", "right", "wrong", "headline")
COLUMNS = ("Remedy", "Heads", "K", "Kept right", "Kept wrong", "Gain right", "Gain wrong", "Headline", "95 % CI", "p")


def calm_table(result: Mapping[str, Any]) -> Table:
    """The best trials of the choice, then the chosen one beside its controls on the test questions.

    Args:
        result: Of `headwise.methods.doubt.calm.calm`.

    Raises:
        HeadwiseError: It is no such result.
    """
    checked_calm(result)
    table = _compact("Remedies against doubt", subject(result))
    for name in ("Part", "Remedy", *COLUMNS[2:]):
        whole = not name.startswith(("Kept", "Gain"))  # headings of two words may take two lines
        table.add_column(name, justify="left" if name in ("Part", "Remedy") else "right", no_wrap=whole)
    best = best_first(result["selection"])
    for part, rows in (("choice", best[:SELECTED]), ("test", compared(result))):
        for i, row in enumerate(rows):
            remedy, heads, *numbers = trial_cells(row)
            table.add_row(*map(Text, ("" if i else part, remedy if row["kind"] in ("none", "chosen") else heads, *numbers)))
    more = f"The best {SELECTED} of {len(best)} trials of the choice.\n" if len(best) > SELECTED else ""
    table.caption = (
        f"{more}Kept: answers in %. Gain: change of these in points. Headline: gain of right\n"
        "answers minus that of wrong ones. p: sign flips over questions; those of the\n"
        "choice corrected over all trials. Test: the chosen remedy, then the same for\n"
        "other heads; of random sets the means, and the 95 % quantile of the headline."
    )
    return table


def trial_cells(row: Row) -> list[str]:
    """One trial as text, in the order of `COLUMNS`; shares in per cent, changes in points."""
    nothing, p = row["kind"] == "none", row.get("p_corrected", row["p"])
    changes = [UNKNOWN if nothing else points(row[name]) for name in ("right", "wrong", "headline")]
    ends = UNKNOWN
    if row["interval"] is not None and not nothing:
        ends = " to ".join(points(end) for end in row["interval"])
    elif row.get("random_95") is not None:
        ends = f"95 %: {points(row['random_95'])}"
    kept = [f"{100 * row[name]:.0f}" for name in ("kept_right", "kept_wrong")]
    told = UNKNOWN if nothing or p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
    return [row["remedy"], "" if nothing else str(row.get("label", row["kind"])), str(row["k"]), *kept, *changes, ends, told]


def points(change: float) -> str:
    """A change of a share in percentage points, as `+3.5`; never `-0.0`."""
    text = f"{100 * change:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def calm_lines(result: Mapping[str, Any]) -> list[str]:
    """What the test says, in words: the verdict, how much the choice promised too much, and whether the model only says yes more often.

    Args:
        result: Of `headwise.methods.doubt.calm.calm`.

    Raises:
        HeadwiseError: It is no such result.
    """
    chosen = checked_calm(result)["chosen"]
    name = f"{chosen['remedy']} at {count(chosen['k'], 'head')}"
    return [f"{chosen['verdict']}: {name}: {_verdict(chosen)}", _optimism(chosen), _yes_bias(chosen)]


def _verdict(chosen: Row) -> str:
    if chosen["verdict"] == "not testable":
        return "too few right answers of the test questions are taken back, so there is nothing to calm"
    low, high = chosen["interval"]
    found = f"headline {points(chosen['headline'])} points (95 % CI {points(low)} to {points(high)})"
    if chosen["random_95"] is None:
        return f"{found}; there are no random sets of the same layers to compare it with"
    beats = chosen["headline"] > chosen["random_95"]
    above = f"{'more' if beats else 'not more'} than 95 % of {count(chosen['draws'], 'random set')} of the same layers"
    zero = "the interval lies above 0" if low > 0 else "the interval reaches down to 0 or below"
    return f"{found}; {zero}, and this is {above} ({points(chosen['random_95'])}; rank p {chosen['rank_p']:.3f})"


def _optimism(chosen: Row) -> str:
    gap, promised = chosen["optimism"], points(chosen["selected_headline"])
    start = f"optimism: on the questions of the choice its headline was {promised} points"
    if gap > 0:
        return f"{start}, {100 * gap:.1f} more than on the test questions; a best of many trials promises too much"
    return f"{start}, not more than on the test questions"


def _yes_bias(chosen: Row) -> str:
    found = f"kept right answers change by {points(chosen['right'])} points, kept wrong ones by {points(chosen['wrong'])}"
    if chosen["yes_bias"]:
        return f"yes-bias: {found}; wrong answers gain as much, so the model only holds on to whatever it said"
    if chosen["right"] <= 0:
        return f"no yes-bias: {found}; right answers are not kept more often at all"
    return f"no yes-bias: {found}; right answers gain more than wrong ones"


def _compact(title: str, source: str) -> Table:
    """An empty table with narrow gaps, so that its many columns fit into 80 characters."""
    table = titled_table(title, source)
    table.padding = (0, 1, 0, 0)
    return table
