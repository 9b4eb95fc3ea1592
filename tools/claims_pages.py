"""Fill the blocks of docs and README that come from the ledger of claims, and the results that lie in it.

python tools/claims_pages.py            # fills every block between <!-- claims: WHAT --> and <!-- end claims -->
python tools/claims_pages.py --check    # status 1 if a page differs

WHAT is `summary` (cards by verdicts), `headlines` (a few claims of every card), `models` (what was measured on), `card NAME` (a row per claim),
`family NAME` (the claims of a family), `missing` (what cannot be tested, and what that would need), `transfer MODEL` (the matrix of detectors and
tasks, with its picture docs/figures/transfer-MODEL.png, which is drawn anew whenever such a block changes) or
`details MODEL EXPERIMENT KEY.KEY [OPTION=VALUE]` (a table that lies behind the claims of an experiment, see `details`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwise.claims.claim import CARDS, Claim
from headwise.claims.ledger import claims
from headwise.claims.results import Result, Row, rows, shipped_results
from headwise.cli.claims_picture import matrices, with_matrix, write_picture
from headwise.report.claims_tables import p_text, with_interval

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- claims: ([a-z]+)(?: ([^>]+?))? -->\n).*?(<!-- end claims -->)", re.DOTALL)
HEADLINES = (
    "heads.sparse", "heads.causal.recall", "heads.causal.layer", "heads.reasoning.written", "heads-models.other_seed",
    "rank.selected_above_all.hotpotqa", "rank.selected_above_copy.hotpotqa", "query-world.few_above_random",
    "cafe.recall_above_all.hotpotqa", "cafe.stage1_above_direct.hotpotqa", "cafe-world.recall_above_all.both",
    "compresskv.semantic_above_random", "compresskv.semantic_at_least_groups", "cache.compresskv_first",
    "zigzag.top_gates_suffice", "zigzag.random_patterns_fail", "zigzag.exclusivity_costs",
    "influence-separation.same", "influence-separation.above_loss",
    "atlas.in_context_needed.facts", "atlas.in_context_needed.world", "atlas.two_groups.facts", "steer.task_vectors", "patch.half.last",
    "trace.top1_passage.nq", "trace.top1_passage.world",
    "specontext.mean_misses_needles", "specontext.text_as_full", "distilled.worth_its_weights",
    "doubt.facts.flips", "doubt.facts.above_random", "doubt.lab.above_random", "doubt.needles.recall_needs_retrieval",
    "mudaf.smollm2.focus", "mudaf.lab.focus", "rhio.smollm2.whole", "rhio.smollm2.heads_away", "rhio.lab.whole", "reader.smollm2.above_random",
    "transfer.one_kind", "transfer.cross.semantic.copy", "transfer.cross.query.copy", "transfer.cross.in-context.copy",
)  # fmt: skip
MARKS = {"held": "held", "not held": "**not held**", "not testable": "not testable", "old": "old", "": "–"}


def pages() -> list[Path]:
    """All pages with a block."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in every if BLOCK.search(path.read_text("utf-8"))]


def filled(text: str, results: Sequence[Result], base: str = "") -> str:
    """A page with its blocks made anew. base: from the page to docs/, in front of links."""
    shown = rows(results)

    def block(match: re.Match[str]) -> str:
        what, name = match[2], match[3] or ""
        bodies = {
            "summary": lambda: summary(shown, base),
            "headlines": lambda: headlines(shown, base),
            "models": lambda: models(results),
            "card": lambda: table([row for row in shown if row.claim.card == name]),
            "family": lambda: table([row for row in shown if row.claim.family == name]),
            "missing": lambda: missing(shown),
            "details": lambda: details(results, *name.split()),
            "transfer": lambda: transfer(results, name, base),
        }
        if what not in bodies:
            sys.exit(f"unknown block {what!r}; use {', '.join(bodies)}")
        return f"{match[1]}{bodies[what]()}\n{match[4]}"

    return BLOCK.sub(block, text)


def base_of(path: Path) -> str:
    """From a page to docs/, as links begin: `docs/` for README.md, `../` for a page of a method."""
    return "docs/" if path.parent == ROOT else "../" * (len(path.relative_to(ROOT).parts) - 2)


def drawn(before: str, after: str, results: Sequence[Result]) -> list[Path]:
    """Pictures of the blocks `transfer` that differ between two versions of a page, drawn anew."""
    old, new = ({match[3]: match[0] for match in BLOCK.finditer(text) if match[2] == "transfer"} for text in (before, after))
    paths = []
    for model in new:
        own = [one for one in results if one.model["name"] == model]
        if with_matrix(own) and new[model] != old.get(model):
            paths.append(picture(model))
            write_picture(matrices(own), paths[-1])
    return paths


def picture(model: str) -> Path:
    """Where the picture of a model's matrix lies."""
    return ROOT / "docs" / "figures" / f"transfer-{model}.png"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    cells = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in cells)


def summary(shown: Sequence[Row], base: str) -> str:
    """Cards down, models across: how many claims held, did not, cannot be tested, and were not measured though an experiment is for the model."""
    names, body = model_names(shown), []
    for card, (title, page) in CARDS.items():
        own = [row for row in shown if row.claim.card == card]
        number = len([claim for claim in claims().values() if claim.card == card])
        if number:
            body.append([f"[{title}]({base}{page})", str(number), *(counted([row for row in own if row.model == name]) for name in names)])
    whole = ["all", str(len(claims())), *(counted([row for row in shown if row.model == name]) for name in names)]
    head = ["card", "claims", *(f"`{name}`" for name in names)]
    told = "Held / not held / not testable / not measured; claims that no experiment asks of a model are not counted.\n\n" if names else ""
    return told + markdown(head, [*body, whole])


def headlines(shown: Sequence[Row], base: str) -> str:
    """The claims of `HEADLINES` that were judged, card by card."""
    told = [row for row in shown if row.claim.key in HEADLINES and row.told in ("held", "not held")]
    names, body = model_names(told), []
    for key in HEADLINES:
        own = {row.model: row for row in shown if row.claim.key == key and row.verdict}
        if any(row in told for row in own.values()):
            claim = claims()[key]
            title, page = CARDS[claim.card]
            told_of = [found(own[name]) if name in own else "–" for name in names]
            body.append([f"[{title}]({base}{page})", f"{claim.sentence} (`{key}`{looked(claim)})", "; ".join(claim.whole_rule), *told_of])
    return markdown(["card", "claim", "rule", *(f"`{name}`" for name in names)], body) if body else "Nothing was measured yet."


def counted(own: Sequence[Row]) -> str:
    """`3 / 2 / 1 / 0`."""
    told = [row.told for row in own]
    return " / ".join(str(sum(one in kind for one in told)) for kind in (("held",), ("not held",), ("not testable",), ("", "old")))


def model_names(shown: Sequence[Row]) -> list[str]:
    """Names of the models, real ones first."""
    names = list(dict.fromkeys(row.model for row in shown))
    return sorted(names, key=lambda name: (name.endswith(("6m", "seed1", "qwen3", "long", "reask")), name))


def models(results: Sequence[Result]) -> str:
    """What was measured on, with weights and versions."""
    if not results:
        return "No results of the ledger come with this version: what was measured before there was one stands on the pages of the methods."
    body = {}
    for one in results:
        about = one.model
        body[about["name"]] = [
            f"`{about['name']}`", f"{about['layers']} x {about['heads']}", str(about["positions"]), about["weights"],
            ", ".join(f"{name} {version}" for name, version in one.versions.items()),
        ]  # fmt: skip
    return markdown(["model", "layers x heads", "positions", "digest of the weights", "versions"], list(body.values()))


def table(own: Sequence[Row]) -> str:
    """A row per claim; a column per model."""
    names = model_names(own)
    by_claim: dict[str, dict[str, Row]] = {}
    for row in own:
        by_claim.setdefault(row.claim.key, {})[row.model] = row
    body = []
    for key, each in by_claim.items():
        claim = next(iter(each.values())).claim
        told = f"{claim.sentence} (`{key}`{looked(claim)}, {claim.place})"
        body.append([told, "; ".join(claim.whole_rule), *(found(each[name]) if name in each else "–" for name in names)])
    return markdown(["claim", "rule", *(f"`{name}`" for name in names)], body)


def looked(claim: Claim) -> str:
    """A star: the claim's `tries` tell of an earlier look or try."""
    return " \\*" if claim.tries else ""


def found(row: Row) -> str:
    """Verdict, effect beside its control, corrected p."""
    told = row.to_json()
    if not row.verdict or row.finding is None:
        return MARKS[row.told]
    if row.told == "not testable":
        return f"not testable: {shortened(row.verdict.why)}"
    effect = with_interval(told["effect"], told["low"], told["high"])
    beside = f", {words(told['control_name'])} {with_interval(told['control'], None, None)}" if told["control"] is not None else ""
    if told["decided_by"] not in (told["effect_name"], told["control_name"]) and told["decided"] is not None:
        beside += f", {words(told['decided_by'])} {with_interval(told['decided'], told['decided_low'], told['decided_high'])}"
    p = f", p {p_text(told['p_corrected'])}" if told["p_corrected"] is not None else ""
    if row.told == "not held":
        p += f"; missed: {words(told['missed'])}"
    return f"{MARKS[row.told]}: {words(told['effect_name'])} {effect}{beside}{p}"


def words(name: str) -> str:
    """The name of a number as words."""
    return name.replace("_", " ")


def shortened(text: str, most: int = 110) -> str:
    """The beginning of a long reason."""
    return text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0] + " ..."


def missing(shown: Sequence[Row]) -> str:
    """Claims that no model could test, and why."""
    body = []
    for key, claim in claims().items():
        own = [row for row in shown if row.claim.key == key and row.told]
        if own and all(row.told == "not testable" for row in own):
            reasons = "; ".join(f"`{row.model}`: {row.verdict.why}" for row in own if row.verdict)
            body.append([f"`{key}`", claim.sentence, shortened(reasons, 240)])
    return markdown(["claim", "what is claimed", "why it cannot be tested here"], body) if body else "Nothing was measured yet."


def details(results: Sequence[Result], model: str, experiment: str, keys: str, *options: str) -> str:
    """A table behind the claims of an experiment: a list of rows, or named rows or values; three numbers are a mean with its interval.

    Args:
        results: All.
        model: Whose.
        experiment: Its name.
        keys: From the outside in, with dots between them; a blank in a key is written `_`.
        options: `where=COLUMN:VALUE`: rows that have it. `columns=A,B`: those alone. `by=COLUMN` and `show=OTHER`: the values of one column become
            columns, which show the other. `by=,`: what stands behind the last comma of a name becomes a column. `show=NAME` alone: of tables
            in a table this value.
    """
    own = [one for one in results if (one.model["name"], one.experiment) == (model, experiment)]
    if not own:
        return "Not measured."
    given = dict(option.split("=", 1) for option in options)
    found: Any = own[0].details
    for key in keys.split("."):
        found = found[key.replace("_", " ") if key not in found else key]
    if isinstance(found, dict):
        values = [{"": name} | (inner(row, given.get("show")) if isinstance(row, dict) else {"value": row}) for name, row in found.items()]
        named = crossed(found) if given.get("by") == "," else values
    else:
        column, _, value = given.get("where", "").partition(":")
        kept = [row for row in found if not column or str(row.get(column)) == value]
        named = pivoted(kept, given["by"], given["show"]) if "by" in given else kept
    head = given["columns"].split(",") if "columns" in given else list(dict.fromkeys(name for row in named for name in row))
    return markdown([words(name) for name in head], [[cell(row.get(name)) for name in head] for row in named])


def inner(row: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """A row; of the tables in it the value of a name."""
    return {column: value.get(name) if isinstance(value, dict) else value for column, value in row.items()}


def crossed(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per part of a name before its last comma, a column per part behind it."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        row, _, column = name.rpartition(", ")
        found.setdefault(row, {"": row})[column] = value
    return list(found.values())


def pivoted(rows_: Sequence[Mapping[str, Any]], by: str, shown: str) -> list[dict[str, Any]]:
    """A row per combination of words and whole numbers, a column per value of `by`."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows_:
        named = {name: value for name, value in row.items() if isinstance(value, str | int) and name != by}
        found.setdefault(tuple(named.values()), dict(named))[f"no {by}" if row[by] is None else f"{by} {row[by]:g}"] = row[shown]
    return list(found.values())


def cell(given: Any) -> str:
    """A value of a table."""
    if isinstance(given, Sequence) and len(given) == 3 and all(isinstance(one, float | int) for one in given):
        return with_interval(*given)
    if isinstance(given, float | int) and not isinstance(given, bool):
        return with_interval(given, None, None)
    return "–" if given is None else words(str(given))


def transfer(results: Sequence[Result], model: str, base: str) -> str:
    """Detectors down, tasks across: loss increase per token, and the list's overlap with itself and by chance; the picture above, if it is there."""
    own = [one for one in with_matrix(results) if one.model["name"] == model]
    if not own:
        return "Not measured."
    details = own[0].details
    names = [task for task, rows_ in details["increases"].items() if rows_]
    body = []
    for name in details["heads"]:
        cells = [value(details["increases"][task][name]) for task in names]
        overlap = f"{details['overlap'][name][name]:.2f} ({details['by_chance'][name]:.2f})"
        body.append([name, *cells, overlap])
        if name == next(iter(details["heads"])):
            first = name
    body.append(["random, layers of " + first, *(value(details["increases"][task][f"{first}/random"]) for task in names), ""])
    head = ["heads of", *(f"{task} ({details['items'][task][0]} of {details['items'][task][1]})" for task in names), "halves share (chance)"]
    absent = "; ".join(f"{name}: {why}" for name, why in details["missing"].items())
    told = f"Which heads are the same: detectors by tasks and detectors by detectors, {model}"
    above = f"![{told}]({base}figures/{picture(model).name})\n\n" if picture(model).is_file() else ""
    return above + markdown(head, body) + (f"\n\nWithout heads or items: {absent}." if absent else "")


def value(ends: Sequence[float]) -> str:
    """`0.43 (0.16 to 0.74)`."""
    return f"{ends[0]:.2f} ({ends[1]:.2f} to {ends[2]:.2f})"


def main() -> None:
    """Fill the pages, or say which differ."""
    results = shipped_results()
    wrong = []
    for path in pages():
        text = path.read_text("utf-8")
        made = filled(text, results, base_of(path))
        if made != text:
            wrong.append(path.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                pictures = drawn(text, made, results)
                wrong += [one.relative_to(ROOT).as_posix() for one in pictures]
                path.write_text(filled(made, results, base_of(path)) if pictures else made, "utf-8")
    if wrong:
        sys.stdout.write(("differ from the ledger: " if "--check" in sys.argv else "written: ") + ", ".join(wrong) + "\n")
    sys.exit(1 if wrong and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
