"""`headwise select`: score a corpus by what its texts lose without retrieval heads, choose a share of it, look at the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.cli.select_score import Job, ask_ray, read_heads, run_estimate, run_score
from headwise.heads.errors import HeadwiseError

app = typer.Typer(name="select", help="Choose pretraining data by the influence of retrieval heads.", no_args_is_help=True)
Inputs = Annotated[list[str], typer.Argument(help="Files, folders, globs or URLs: .parquet, .jsonl, .jsonl.gz, .jsonl.zst.")]
Out = Annotated[str, typer.Argument(help="Folder or URL with the scores, as given to `select score --output`.")]
Where = Annotated[
    list[str] | None, typer.Option("--inputs", help="Where the scored files are now.", show_default="where they were")
]
Scores = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Folder or URL for scores; the same command continues there.", show_default=False),
]
HeadFile = Annotated[Path | None, typer.Option(help="Head file, best of `headwise detect proxy`.", show_default=False)]
Model = Annotated[str | None, typer.Option("--model", "-m", help="As for other commands.", show_default="the lab model")]
Machines = Annotated[
    list[str] | None, typer.Option(help="--estimate: NAME=TOKENS/S, or NAME=FLOPS:FLOP_PER_TOKEN.", show_default=False)
]


@app.callback()
def select() -> None:
    """Choose pretraining data by the influence of retrieval heads."""


@app.command("score")
def score(
    inputs: Inputs,
    output: Scores = None,
    heads: HeadFile = None,
    model: Model = None,
    top: Annotated[int | None, typer.Option(help="How many of the strongest heads.", show_default="--share of all")] = None,
    share: Annotated[float, typer.Option(help="Share of all heads, strongest first.")] = 0.05,
    mode: Annotated[str, typer.Option(help="What the heads get: uniform attention (the paper's), or zero output.")] = "uniform",
    text: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    domain: Annotated[str | None, typer.Option(help="Column with the domains.", show_default="see --domain-from")] = None,
    domain_from: Annotated[str, typer.Option(help="Domain without a column: none, folder or file.")] = "none",
    id: Annotated[str | None, typer.Option("--id", help="Column to copy into the score files.", show_default="none")] = None,
    max_len: Annotated[int | None, typer.Option(help="Longest pass in tokens.", show_default="the model's, at most 4096")] = None,
    max_windows: Annotated[int | None, typer.Option(help="Read so many windows of a document.", show_default="all")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch, padding included.")] = 4096,
    least_tokens: Annotated[int, typer.Option(help="Documents with fewer scored tokens are flagged.")] = 64,
    floor: Annotated[float, typer.Option(help="Documents with a loss below (nats) are flagged.")] = 0.05,
    runner: Annotated[str, typer.Option(help="local (this process) or ray (a cluster).")] = "local",
    shard: Annotated[str, typer.Option(help="i/n: take the i-th of n parts of the files, i from 0.")] = "0/1",
    workers: Annotated[int | None, typer.Option(help="Threads that tokenise.", show_default="cores, at most 4")] = None,
    actors: Annotated[str, typer.Option(help="ray: models at a time, N or least:most.")] = "1",
    cpus: Annotated[float, typer.Option(help="ray: cores per model.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="ray: GPUs per model.")] = 0.0,
    estimate: Annotated[bool, typer.Option("--estimate", help="Measure a sample, tell hours and GPUs, write nothing.")] = False,
    sample: Annotated[int, typer.Option(help="--estimate: rows of the sample.")] = 256,
    machine: Machines = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Score every document: its loss, its loss without the heads, and how much larger that is. Stop and start again as you like."""
    from headwise.corpus.options import ScoreOptions, parse_shard

    if heads is None:
        raise HeadwiseError("name the heads with --heads FILE; find them first: headwise detect proxy MODEL")
    if output is None and not estimate:
        raise HeadwiseError("say where the scores go with --output FOLDER; the same command continues there")
    if runner not in ("local", "ray"):
        raise HeadwiseError(f"unknown runner {runner!r}; use local or ray")
    if mode not in ("uniform", "zero"):
        raise HeadwiseError(f"unknown --mode {mode!r}; use uniform or zero")
    threads: dict[str, Any] = {} if workers is None else {"workers": workers}
    options = ScoreOptions(
        text_column=text, domain_column=domain, domain_from=domain_from, id_column=id, shard=parse_shard(shard), **threads
    )  # fmt: skip
    limits: dict[str, Any] = {"max_len": max_len, "max_windows": max_windows, "tokens_per_batch": batch_tokens}
    limits |= {"least_tokens": least_tokens, "floor": floor}
    job = Job(model, device, dtype, revision, read_heads(heads, top, share), mode, tuple(limits.items()))
    if estimate or output is None:
        run_estimate(inputs, job, options, sample, machine or [], json)
        return
    cluster = ask_ray(actors, cpus, gpus) if runner == "ray" else None
    summary = run_score(inputs, output, job, options, cluster, json)
    if not summary.complete:
        raise typer.Exit(1)


@app.command("choose")
def choose(
    out: Out,
    share: Annotated[float, typer.Option(help="Share of each domain, in (0, 1].")] = 0.2,
    by: Annotated[str, typer.Option(help="The share is one of docs (the paper's) or of tokens.")] = "docs",
    rank: Annotated[str, typer.Option(help="score, or a control: random, longest, perplexity (lowest loss).")] = "score",
    strata: Annotated[int, typer.Option(help="Strata of length in each domain, each with its own cut.")] = 1,
    least_loss: Annotated[float, typer.Option(help="Leave out documents with a lower loss (nats).")] = 0.0,
    flagged: Annotated[bool, typer.Option("--flagged", help="Rank flagged documents too.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random control and of ties.")] = 0,
    copy: Annotated[bool, typer.Option("--copy", help="Also write the chosen rows of the inputs.")] = False,
    inputs: Where = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Where to write.", show_default="OUT/selected")] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Choose the best share of every domain: a file of yes and no beside each score file, the cuts, and a manifest."""
    from headwise.corpus import choose as c
    from headwise.corpus.thresholds import ChoiceOptions
    from headwise.report.console import print_all
    from headwise.report.influence_table import choice_table

    options = ChoiceOptions(share, by, rank, strata, least_loss, flagged, seed)
    with progress("choosing", hidden=json) as report:
        done = c.choose(out, options, output, copy=copy, inputs=inputs or (), overwrite=overwrite, report=report)
    where = output or f"{out.rstrip('/')}/selected"
    if json:
        o.print_json({"selected": where, **done})
        return
    print_all(choice_table(done["thresholds"]), *_unfinished(done["unfinished"]), f"selected  {where}")


@app.command("report")
def report(
    out: Out,
    selection: Annotated[
        str | None, typer.Option(help="Folder of the choice to show.", show_default="OUT/selected, else the best 20 %")
    ] = None,
    documents: Annotated[int, typer.Option(help="Documents to show per domain and kind.")] = 5,
    inputs: Where = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page.", show_default="OUT.html")] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """A page about the scores and the choice: distributions, length, other filters, and documents to read."""
    if documents < 0:
        raise HeadwiseError(f"the number of documents must be 0 or more; got {documents}")
    path = output or Path(f"{out.rstrip('/')}.html" if "://" not in out else "influence.html")
    if path.is_dir():
        raise HeadwiseError(f"{path} is a folder; give a file name with --output")
    if path.exists() and not overwrite:
        raise HeadwiseError(f"{path} exists; give another --output or --overwrite (results are never merged)")
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


def _chosen_by(out: str, selection: str | None, config: str) -> Any:
    """The options of a choice, or the default ones."""
    from headwise.corpus.folder import Folder
    from headwise.corpus.thresholds import ChoiceOptions

    where = selection or f"{out.rstrip('/')}/selected"
    found = Folder(where).read_json("manifest.json")
    if found is None and selection is not None:
        raise HeadwiseError(f"{selection} holds no finished choice; make one: headwise select choose {out}")
    if found is None:
        return ChoiceOptions()
    if found.get("config") != config:
        raise HeadwiseError(f"{where} was chosen from other scores ({found.get('config')}, now {config}); choose again")
    return ChoiceOptions(**found["options"])


def _by_file(named: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for kinds in named.values():
        for rows in kinds.values():
            for row in rows:
                found.setdefault(row["file"], []).append(row)
    return found


def _unfinished(count: int) -> list[str]:
    return [f"note      {count} files are still being scored, or were when a job was stopped"] if count else []
