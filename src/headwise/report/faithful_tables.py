"""Faithfulness in the console: correction, resistance, agreement; support of long answers; readers of answers. Plain data in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from headwise.heads.errors import HeadwiseError
from headwise.report.tables import UNKNOWN, titled_table

Row = Mapping[str, Any]
MEASURES = ("correction", "resistance", "agreement")


def faithful_table(rows: Sequence[Row]) -> Table:
    """Correction, resistance and agreement: one line per model and decoder, a second one for the difference to plain decoding.

    Args:
        rows: Of one or several `FaithfulResult`s; shares in [0, 1].

    Raises:
        HeadwiseError: There is no row.
    """
    table = _started("Whom answers follow, in %", rows)
    table.add_column("Decoder", overflow="fold")
    for name in MEASURES:
        table.add_column(name.capitalize(), justify="right")
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {(row["decoder"], row["measure"]): row for row in rows if row["model"] == model}
        decoders = list(dict.fromkeys(decoder for decoder, _ in own))
        table.add_row(Text(model, style="bold"), *(f"{own[decoders[0], name]['questions']} questions" for name in MEASURES))
        for decoder in decoders:
            _lines(table, decoder, [own[decoder, name] for name in MEASURES], "share", "difference")
        table.add_section()
    table.caption = (
        "Correction: the passage is right and memory wrong; answers by the passage.\n"
        "Resistance: the passage is wrong and memory right; answers by memory.\n"
        "Agreement: both are right; right answers. Brackets: 95 % interval over\n"
        "questions."
    )
    if not all(row["testable"] for row in rows):
        table.caption += "\nNot testable: fewer questions than --min-questions."
    if any("difference" in row for row in rows):
        table.caption += (
            "\nSecond lines: difference to plain decoding in points, and p of it, corrected\nfor the number of rows."
        )
    return table


def support_table(rows: Sequence[Row], checker: Mapping[str, Any]) -> Table:
    """Support of answers in sentences, beside coverage, length and refusals.

    Args:
        rows: Of one or several `SupportResult`s; shares in [0, 1].
        checker: What the result says of its checker.

    Raises:
        HeadwiseError: There is no row.
    """
    table = _started(f"Support by the documents, in %; checker: {checker['checker']}", rows)
    table.add_column("Decoder", overflow="fold")
    for name in ("Support", "Full", "Some", "Cover.", "Words", "Refused", "Refused\nunansw."):
        table.add_column(name, justify="right")
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        counts = f"{own[0]['questions']} + {own[0]['unanswerable']} questions"
        table.add_row(Text(model, style="bold"), counts)
        for row in own:
            words = UNKNOWN if row["words"] is None else f"{row['words']:.0f}"
            shares = [_percent(row[name]) for name in ("full", "incomplete", "coverage")]
            refused = [_percent(row[name]) for name in ("refusals", "unanswerable_refusals")]
            table.add_row(Text(row["decoder"]), _share(row, "support"), *shares, words, *refused)
            if row.get("difference") is not None:
                table.add_row("", _difference(row, "difference"))
            if row["errors"]:
                told = ", ".join(f"{label} {count}" for label, count in sorted(row["errors"].items()))
                table.add_row("", Text(told))
        table.add_section()
    table.caption = (
        "Questions: answerable + unanswerable. Support: mean over answers of the mean\n"
        "over sentences, refusals aside. Full, some: answers whose sentences are all,\n"
        "or partly, supported. Cover.: of facts or references, refusals count 0."
    )
    if checker["checker"] == "lexical":
        table.caption += "\nShared words are a weak checker: use an entailment model for real text."
    return table


def reader_table(result: Mapping[str, Any]) -> Table:
    """Areas under the ROC curve of a reader of answers and of its controls.

    Args:
        result: Data of a `ReaderResult`.
    """
    table = _started("Which sentences do the documents support? Area under the ROC curve", result["rows"], str(result["model"]))
    table.add_column("Judged")
    table.add_column("Score")
    table.add_column("Heads")
    for name in ("AUC", "95 % CI", "p rank", "Supported", "Not"):
        table.add_column(name, justify="right")
    before = None
    for row in result["rows"]:
        area = UNKNOWN if row["auc"] is None else f"{row['auc']:.3f}"
        bounds = UNKNOWN if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        p = f"{row['p_rank']:.3f}" if "p_rank" in row else ""
        judged, counts = row["judged"] if row["judged"] != before else "", (str(row["supported"]), str(row["unsupported"]))
        table.add_row(judged, row["score"], row["heads"], area, bounds, p, *(counts if judged else ("", "")))
        before = row["judged"]
    table.caption = (
        "Attention: mass on the documents. Copying: the strongest key is the token to\n"
        "come, in a document. Random heads: mean, smallest and largest of the draws.\n"
        "p rank: the chosen heads among the draws. Length: shorter sentences count as\n"
        "supported."
    )
    if any(row["judged"] != "all" for row in result["rows"]):
        table.caption += "\nOn evidence: without sentences that no document was named for."
    return table


def dropped_line(dropped: Mapping[str, int]) -> list[str]:
    """What was left out and why, as one line; none if nothing was."""
    return [f"left out   {', '.join(f'{count}: {reason}' for reason, count in dropped.items())}"] if dropped else []


def _started(title: str, rows: Iterable[Row], source: str = "") -> Table:
    if not rows:
        raise HeadwiseError("there are no rows to show: nothing was measured")
    table = titled_table(title, source)
    table.collapse_padding = True
    return table


def _lines(table: Table, decoder: str, rows: Sequence[Row], share: str, difference: str) -> None:
    table.add_row(Text(decoder), *(_share(row, share) if row["testable"] else "not testable" for row in rows))
    if any(difference in row for row in rows):
        table.add_row("", *(_difference(row, difference) if difference in row else "" for row in rows))


def _share(row: Row, name: str) -> str:
    if row[name] is None:
        return UNKNOWN
    return f"{100 * row[name]:.0f} ({100 * row['low']:.0f}–{100 * row['high']:.0f})"


def _difference(row: Row, name: str) -> str:
    p = row.get("p_corrected")
    told = "" if p is None else ", p <0.001" if p < 0.001 else f", p {p:.3f}"
    return f"{100 * row[name]:+.0f}{told}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.0f}"
