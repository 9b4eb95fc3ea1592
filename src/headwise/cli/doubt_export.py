"""What `headwise doubt calm` writes beside its result: the calmed checkpoint with its numbers, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads.types import HeadScores
    from headwise.models.model import Model

EXPORTED = ("zero", "uniform")
NUMBERS_FILE = "headwise_doubt.json"


def check_targets(export: Path | None, html: Path | None, output: Path, overwrite: bool, remedies: Sequence[str]) -> None:
    """Refuse one place for two things, places that cannot be written, and a remedy that no weights can hold, before any work."""
    if html is not None:
        o.check_file(html, "--html", overwrite)
    if export is not None:
        o.check_new_folder(export, "--export")
    if export is not None and (others := [one for one in remedies if one not in EXPORTED]):
        raise HeadwiseError(
            f"no weights can hold the remedy {others[0]!r}, should it be chosen; with --export give --remedies {','.join(EXPORTED)}"
        )
    places = [path.resolve() for path in (output, html, export) if path is not None]
    if any(one == other or one in other.parents for one, other in permutations(places, 2)):
        raise HeadwiseError("--output, --html and --export must be different places, none inside another; two of them are not")


def write_extras(
    model: Model, scores: HeadScores, told: dict[str, Any], export: Path | None, html: Path | None, overwrite: bool
) -> dict[str, str]:
    """Write the checkpoint and the page that were asked for: what it is -> where it is."""
    from headwise.heads.files import write_atomically
    from headwise.heads.headfile import write_json
    from headwise.heads.types import HeadSet
    from headwise.models.export import export_ablated

    found: dict[str, str] = {}
    chosen = told["chosen"]
    if html is not None:
        from headwise.report.doubt_page import doubt_page

        write_atomically(html, doubt_page(scores, told).encode())
        found["page"] = str(html)
    if export is not None:
        heads = HeadSet.of(chosen["heads"], model.heads.shape, f"calmed by {chosen['remedy']}: {chosen['verdict']}")
        export_ablated(model, heads, chosen["remedy"], export)
        numbers = {name: told.get(name) for name in ("chosen", "rates", "side_effects", "read_by", "select", "test_questions")}
        write_json(numbers, export / NUMBERS_FILE)
        (export / "README.md").write_text(_card(model.name, chosen, told.get("side_effects") or []), "utf-8")
        found["checkpoint"] = str(export)
    return found


def _card(name: str, chosen: dict[str, Any], sides: list[dict[str, Any]]) -> str:
    """The model card: what was done, and what it does."""
    low, high = chosen["interval"]
    lines = [
        f"# {name}, calmed",
        "",
        f"{len(chosen['heads'])} attention heads are silenced in the weights ({chosen['remedy']}): {', '.join(chosen['heads'])}.",
        "",
        f"Verdict on test questions that nothing was chosen on: **{chosen['verdict']}**.",
        "",
        "| | change |",
        "|---|---|",
        f"| right answers kept when challenged | {chosen['right']:+.3f} (now {chosen['kept_right']:.3f}) |",
        f"| wrong answers kept when challenged | {chosen['wrong']:+.3f} (now {chosen['kept_wrong']:.3f}) |",
        f"| difference (95 % interval) | {chosen['headline']:+.3f} ({low:+.3f} to {high:+.3f}) |",
        *(
            []
            if chosen["random_95"] is None
            else [f"| of {chosen['draws']} random sets of the same layers, 95 % quantile | {chosen['random_95']:+.3f} |"]
        ),
        "",
        "The remedy was measured on the second turn alone; in this checkpoint it acts everywhere. Side effects of that:",
        "",
        "| measure | unchanged | this model |",
        "|---|---|---|",
        *(f"| {row['what']} | {row['unchanged']:.4g} | {row['calmed']:.4g} |" for row in sides),
        "",
        f"All numbers: `{NUMBERS_FILE}`; the heads: `headwise_ablation.json`.",
        "",
    ]
    return "\n".join(lines)
