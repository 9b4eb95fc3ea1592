"""`headwise select choose` and `headwise select report`: choose a share of a scored corpus, look at the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.corpus.options import NAMED, ChoiceOptions
from headwise.heads.errors import HeadwiseError

Out = Annotated[str, typer.Argument(help="Folder or URL with the scores, as given to `select score --output`.")]
Where = Annotated[
    list[str] | None, typer.Option("--inputs", help="Where the scored inputs are now, if they were moved.", show_default="where they were")
]


def choose(
    context: typer.Context,
    out: Out,
    share: Annotated[float, typer.Option(help="Share of each domain, in (0, 1].")] = ChoiceOptions.share,
    by: Annotated[str, typer.Option(help="What the share counts: docs (as in the paper) or tokens.")] = ChoiceOptions.by,
    rank: Annotated[str, typer.Option(help="score, or a control: random, longest, perplexity (lowest loss).")] = ChoiceOptions.rank,
    strata: Annotated[int, typer.Option(help="Strata of length in each domain, each with its own cut.")] = ChoiceOptions.strata,
    min_loss: Annotated[float, typer.Option(help="Leave out documents with a loss below this (nats).")] = ChoiceOptions.min_loss,
    flagged: Annotated[bool, typer.Option("--flagged", help="Also rank flagged documents.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random control and of ties.")] = ChoiceOptions.seed,
    copy: Annotated[bool, typer.Option("--copy", help="Also write the chosen rows of the inputs.")] = False,
    inputs: Where = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Where to write.", show_default="OUT/selected")] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Choose the best share of every domain; write for each row whether it is chosen, the cuts, and a manifest."""
    from headwise.corpus import choose as c
    from headwise.report.console import print_all
    from headwise.report.influence_table import choice_table

    if not copy:
        o.refuse_unused(context, ("inputs",), "says where --copy finds the rows; give both, or leave it out")
    options = ChoiceOptions(share, by, rank, strata, min_loss, flagged, seed)
    with progress("choosing", hidden=json) as report:
        done = c.choose(out, options, output, copy=copy, inputs=inputs or (), overwrite=overwrite, report=report)
    where = output or f"{out.rstrip('/')}/selected"
    if json:
        o.print_json({"selected": where, **done})
        return
    lost = sum(entry["not_copied"] for entry in done["files"])
    notes = [f"note      {lost} chosen rows of damaged files could not be read back and were not copied"] if lost else []
    print_all(choice_table(done["thresholds"]), *_unfinished(done["unfinished"]), *notes, f"selected  {where}")


def report(
    out: Out,
    selection: Annotated[
        str | None, typer.Option(help="Folder of the choice to show.", show_default="OUT/selected, else the best 20 %")
    ] = None,
    documents: Annotated[int, typer.Option(help="Documents per domain: so many each of the highest, the lowest and at the cut.")] = NAMED,
    inputs: Where = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page.", show_default="OUT.html")] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Write a page about the scores and the choice: distributions, length, other filters, and documents to read."""
    if documents < 0:
        raise HeadwiseError(f"the number of documents must be 0 or more; got {documents}")
    page = output or Path(f"{out.rstrip('/')}.html" if "://" not in out else "influence.html")
    path = o.check_file(page, "--output", overwrite)
    from headwise.corpus.originals import Originals
    from headwise.corpus.summary import summarise
    from headwise.corpus.tables import ScoreFiles
    from headwise.report.influence import influence_page

    files = ScoreFiles(out)
    options = _chosen_by(out, selection, files.config)
    originals = Originals(files, inputs or ())
    with progress("reading", hidden=json) as tell:
        data = summarise(files, options, documents, tell)
    for name, rows in _by_file(data["named"]).items():
        for row, text in zip(rows, originals.texts(name, [row["row"] for row in rows]), strict=True):
            row["text"] = text
    influence_page(data, path)
    if json:
        o.print_json({"page": str(path), "correlations": data["correlations"], "overlap": data["overlap"]})
        return
    from headwise.report.console import print_all

    print_all(*_unfinished(files.unfinished), f"page  {path}")


def _chosen_by(out: str, selection: str | None, config: str) -> ChoiceOptions:
    """The options of a choice, or the default ones."""
    from headwise.corpus.folder import Folder

    where = selection or f"{out.rstrip('/')}/selected"
    found = Folder(where).read_json("manifest.json")
    if found is None and selection is not None:
        raise HeadwiseError(f"{selection} holds no finished choice; make one: headwise select choose {out}")
    if found is None:
        return ChoiceOptions()
    chosen_from = found.get("config") if isinstance(found, dict) else None
    if chosen_from != config:
        raise HeadwiseError(f"{where} was chosen from other scores ({chosen_from}, now {config}); choose again")
    return ChoiceOptions.from_json(found.get("options"), f"{where}/manifest.json")


def _by_file(named: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for kinds in named.values():
        for rows in kinds.values():
            for row in rows:
                found.setdefault(row["file"], []).append(row)
    return found


def _unfinished(count: int) -> list[str]:
    return [f"note      {count} files are still being scored, or were when a job was stopped"] if count else []
