"""`headwise rank`: order passages by the attention of chosen heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.prompts.passages import Passage

READABLE = 50  # queries; results of more are not shown one by one
Candidates = dict[str, dict[str, float]]
Passages = Annotated[Path | None, typer.Option(help="JSON lines with id, text and, if wanted, title.", show_default=False)]
Split = Annotated[
    str | None, typer.Option(help="Judgements of --beir: test, dev or train.", show_default="test, or the only ones")
]
MaxWords = Annotated[
    int | None, typer.Option(help="Cut longer passages to this many words, and report how many were cut.", show_default="none is cut")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write the TREC run.", show_default="headwise-out/...")
]
Html = Annotated[
    Path | None,
    typer.Option("--html", help="Write a page: the best passages and the words that drew attention.", show_default=False),
]
Span = Annotated[
    str, typer.Option(help="Which rows count: official (all from the instruction on), query (only its words), or one token: last, query_last.")
]
HeadFile = Annotated[Path | None, typer.Option(help="Head file; best one from `headwise detect query`.", show_default="all heads")]


def rank(
    context: typer.Context,
    model: o.ModelName = None,
    queries: Annotated[Path | None, typer.Option(help="JSON lines with id and text.", show_default=False)] = None,
    passages: Passages = None,
    beir: Annotated[Path | None, typer.Option(help="Folder in BEIR layout, instead of --queries and --passages.", show_default=False)] = None,
    split: Split = None,
    heads: HeadFile = None,
    top: Annotated[int, typer.Option(help="How many of the strongest heads to rank with.")] = 8,
    candidates: Annotated[str, typer.Option(help="What is ranked per query: all, judged, bm25:N, or a TREC run file.")] = "all",
    max_words: MaxWords = None,
    evaluate: Annotated[Path | None, typer.Option(help="Judgements (BEIR or TREC form).", show_default="those of --beir")] = None,
    official: Annotated[bool, typer.Option("--official", help="The released QRHead procedure, step by step.")] = False,
    span: Span = "official",
    normalize: Annotated[str, typer.Option(help="How a passage's tokens are combined: sum, mean or sqrt.")] = "sum",
    order: Annotated[
        str, typer.Option(help="Order of the passages: given, or reversed (the first candidate next to the query, as QRHead does for BEIR).")
    ] = "given",
    overflow: Annotated[str, typer.Option(help="If the passages do not fit: tournament, anchored or refuse.")] = "tournament",
    wording: Annotated[str, typer.Option(help="Wording around passages: plain or instructed.")] = "plain",
    chat: o.Chat = False,
    chat_template_args: o.ChatArgs = None,
    name: o.Name = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: Output = None,
    html: Html = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Rank passages for queries without generating text: one pass reads all passages, then each query is a short pass."""
    _refuse_unused(context, heads, official)
    path = o.output_path(output, model, "run", overwrite, ".trec", html)
    from headwise.heads.files import write_atomically
    from headwise.methods.query.ranker import Ranker, rank_collection
    from headwise.prompts.collections import trec_lines
    from headwise.prompts.prompt import chat_arguments

    texts, asked, judged = _collection(queries, passages, beir, split, evaluate)
    chosen = _without_identical(_candidates(candidates, texts, asked, judged), beir)
    texts, cut = _shortened(texts, chosen, max_words)
    scores = None if heads is None else o.read_scores(heads)
    some = None if scores is None else scores.top(top)
    loaded = o.load(model, device, dtype, revision, name, heads=scores)
    options: dict[str, Any] = {"span": span, "normalize": normalize, "order": order, "overflow": overflow, "wording": wording}
    given = chat_arguments(chat_template_args)
    ranker = (
        Ranker.official(loaded, some, chat, given) if official else Ranker(loaded, some, chat=chat, chat_args=given, **options)
    )
    with progress("ranking", hidden=json) as report:
        run = rank_collection(ranker, texts, asked, chosen, report)
    write_atomically(path, ("\n".join(trec_lines(run, "headwise")) + "\n").encode())
    if html is not None:
        from headwise.cli.rank_page import write_ranking

        write_ranking(html, ranker, texts, asked, run, chosen, judged)
    _show(run, texts, asked, hidden=json)
    _tell(run, chosen, judged, candidates, cut, texts, path, html, json)


def _refuse_unused(context: typer.Context, heads: Path | None, official: bool) -> None:
    if heads is None:
        o.refuse_unused(context, ("top",), "chooses among the heads of --heads FILE; give both, or leave it out to rank with all heads")
    if official:
        own = ("span", "normalize", "order", "overflow", "wording")
        o.refuse_unused(context, own, "is settled by --official; leave one of them out")


def _collection(
    queries: Path | None, passages: Path | None, beir: Path | None, split: str | None, evaluate: Path | None
) -> tuple[dict[str, Passage], dict[str, str], dict[str, dict[str, int]] | None]:
    from headwise.prompts.collections import beir_files, read_passages, read_qrels, read_queries

    if beir is not None and (queries is not None or passages is not None):
        raise HeadwiseError("give --beir, or --queries with --passages, not both")
    if split is not None and beir is None:
        raise HeadwiseError("--split chooses judgements of --beir FOLDER; give both")
    if beir is not None:
        passages, queries, known = beir_files(beir, split)
        evaluate = evaluate or known
    if queries is None or passages is None:
        raise HeadwiseError("nothing to rank: give --queries and --passages, or --beir FOLDER")
    texts = read_passages(passages, keep_empty=beir is not None)
    return texts, read_queries(queries), None if evaluate is None else read_qrels(evaluate)


def _candidates(
    which: str, passages: dict[str, Passage], queries: dict[str, str], judged: dict[str, dict[str, int]] | None
) -> Candidates:
    """Query -> passages to rank, in their first order, with the score that put them there."""
    from headwise.prompts.collections import read_run

    if which == "all":
        return {query: dict.fromkeys(passages, 0.0) for query in queries}
    if which == "judged":
        if judged is None:
            raise HeadwiseError("--candidates judged needs judgements: give --evaluate or --beir")
        found = {query: {p: 0.0 for p in judged.get(query, {}) if p in passages} for query in queries}
    elif which.startswith("bm25:") and which[5:].isdecimal():
        from headwise.stats.ranking import bm25_candidates

        return bm25_candidates(queries, {key: f"{p.title} {p.text}" for key, p in passages.items()}, int(which[5:]))
    elif Path(which).is_file():
        run = read_run(Path(which))
        unknown = next((p for scores in run.values() for p in scores if p not in passages), None)
        if unknown is not None:
            raise HeadwiseError(f"{which} ranks the passage {unknown!r}, which is not among the passages")
        found = {q: dict(sorted(run.get(q, {}).items(), key=lambda item: -item[1])) for q in queries}
    else:
        raise HeadwiseError(f"unknown --candidates {which!r}; use all, judged, bm25:100 or the path of a TREC run")
    return {query: scores for query, scores in found.items() if scores}


def _without_identical(candidates: Candidates, beir: Path | None) -> Candidates:
    """In some collections in BEIR layout a query is a passage, too (ArguAna), which BEIR ignores. Other ids may agree by chance."""
    if beir is None:
        return candidates
    from headwise.stats.ranking import without_identical

    return {query: scores for query, scores in without_identical(candidates).items() if scores}


def _shortened(passages: dict[str, Passage], candidates: Candidates, most: int | None) -> tuple[dict[str, Passage], int]:
    """Passages cut to so many words, and how many of the candidates were cut."""
    if most is None:
        return passages, 0
    if most < 1:
        raise HeadwiseError(f"--max-words must be at least 1; got {most}")
    from headwise.runtime.labelled_passages import shortened

    cut = {key: shortened(passages[key], most) for key in {key for chosen in candidates.values() for key in chosen}}
    return passages | cut, sum(cut[key] is not passages[key] for key in cut)


def _show(run: Candidates, passages: dict[str, Passage], queries: dict[str, str], hidden: bool) -> None:
    """The best passages of the first queries. A collection with many queries is for measures, not for reading: nothing is shown."""
    if hidden or len(run) > READABLE:
        return
    from headwise.report.console import best_table, print_all

    print_all(best_table(run, queries, {key: f"{p.title} {p.text}" for key, p in passages.items()}))


def _tell(
    run: Candidates,
    first: Candidates,
    judged: dict[str, dict[str, int]] | None,
    candidates: str,
    cut: int,
    texts: dict[str, Passage],
    path: Path,
    html: Path | None,
    json: bool,
) -> None:
    from headwise.report.console import print_all

    empty = len({key for keys in first.values() for key in keys if texts[key].is_empty})
    result: dict[str, Any] = {
        "run": str(path),
        "page": None if html is None else str(html),
        "queries": len(run),
        "pairs": sum(map(len, run.values())),
        "cut": cut,
        "empty": empty,
    }
    if judged is not None:
        from headwise.stats.ranking import summary

        result["measures"] = summary(judged, run)
        if len({score for scores in first.values() for score in scores.values()}) > 1:
            result["first_stage"] = summary(judged, first)
    if json:
        o.print_json(result)
        return
    if judged is not None:
        from headwise.report.ranking import measure_table

        print_all(measure_table(result["measures"], result.get("first_stage"), candidates))
    shorter = (f", {cut} different ones cut" if cut else "") + (f", {empty} empty ones last" if empty else "")
    print_all(f"{result['pairs']} passages ranked for {result['queries']} queries{shorter}", f"run  {path}")
    if html is not None:
        print_all(f"page {html}")
