"""`headwise select score`: the heads of a file, the scorer they make, the runner, the estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.corpus.options import SAMPLE_ROWS, RayOptions, ScoreOptions, parse_shard
from headwise.heads.errors import HeadwiseError
from headwise.methods.influence import defaults

if TYPE_CHECKING:
    from headwise.corpus.documents import DocumentScorer
    from headwise.corpus.estimate import Machine
    from headwise.corpus.options import Summary
    from headwise.heads.types import HeadScores, HeadSet

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs or URLs: .parquet, .jsonl, .ndjson, .txt (one document each), also with .gz or .zst."
    ),
]
Scores = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", help="Folder or URL for the scores; the same command continues an unfinished job.", show_default=False
    ),
]
HeadFile = Annotated[Path | None, typer.Option(help="Head file; best one from `headwise detect proxy`.", show_default=False)]
ModelName = Annotated[
    str | None, typer.Option("--model", "-m", help="Hub id, folder, or name of a bundled model.", show_default="the lab model")
]
Machines = Annotated[
    list[str] | None,
    typer.Option(help="For --estimate: another machine, NAME=TOKENS/S or NAME=FLOPS:FLOP_PER_TOKEN.", show_default=False),
]
BATCH = f"{defaults.CPU_TOKENS} on a CPU, {defaults.MANY_TOKENS} elsewhere"
LENGTH = f"the model's, at most {defaults.MAX_LEN}"


def score(
    context: typer.Context,
    inputs: Inputs,
    output: Scores = None,
    heads: HeadFile = None,
    model: ModelName = None,
    top: Annotated[
        int | None, typer.Option(help="How many of the strongest heads to ablate.", show_default="--share of all")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Share of all heads to ablate, strongest first.", show_default="the paper's 5 %")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="Ablated heads get uniform attention (as in the paper) or zero output.")
    ] = defaults.MODE,
    text: Annotated[str, typer.Option(help="Column with the texts; a.b is the field b inside a.")] = ScoreOptions.text_column,
    domain: Annotated[str | None, typer.Option(help="Column with the domains.", show_default="see --domain-from")] = None,
    domain_from: Annotated[str, typer.Option(help="Domain without a column: none, folder or file.")] = ScoreOptions.domain_from,
    id: Annotated[str | None, typer.Option("--id", help="Column to copy into the score files.", show_default="none")] = None,
    max_len: Annotated[int | None, typer.Option(help="Longest pass in tokens.", show_default=LENGTH)] = None,
    max_windows: Annotated[
        int | None, typer.Option(help="Read at most this many windows of a document.", show_default="all")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a batch, padding included.", show_default=BATCH)
    ] = None,
    min_tokens: Annotated[int, typer.Option(help="Documents with fewer scored tokens are flagged.")] = defaults.MIN_TOKENS,
    floor: Annotated[float, typer.Option(help="Documents with a loss below this (nats) are flagged.")] = defaults.FLOOR,
    runner: Annotated[str, typer.Option(help="local (this process) or ray (a cluster).")] = "local",
    shard: Annotated[str, typer.Option(help="i/n: score the i-th of n parts of the files, i from 0.")] = "0/1",
    workers: Annotated[int | None, typer.Option(help="Threads that tokenise.", show_default="cores, at most 4")] = None,
    actors: Annotated[str, typer.Option(help="For ray: models at a time, N or least:most.")] = ":".join(
        map(str, RayOptions.actors)
    ),
    cpus: Annotated[float, typer.Option(help="For ray: cores per model.")] = RayOptions.cpus,
    gpus: Annotated[float, typer.Option(help="For ray: GPUs per model.")] = RayOptions.gpus,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure a sample, estimate hours and GPUs, write nothing.")
    ] = False,
    sample: Annotated[int, typer.Option(help="For --estimate: rows of the sample.")] = SAMPLE_ROWS,
    machine: Machines = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    json: o.Json = False,
) -> None:
    """Score every document: its loss, its loss with the heads ablated, and the relative increase. Stop and continue at any time."""
    if heads is None:
        raise HeadwiseError("name the heads with --heads FILE; find them first: headwise detect proxy MODEL")
    if output is None and not estimate:
        raise HeadwiseError("say where the scores go with --output FOLDER; the same command continues there")
    if mode not in ("uniform", "zero"):
        raise HeadwiseError(f"unknown --mode {mode!r}; use uniform or zero")
    _check_runner(context, runner, estimate)
    threads: dict[str, Any] = {} if workers is None else {"workers": workers}
    options = ScoreOptions(
        text_column=text, domain_column=domain, domain_from=domain_from, id_column=id, shard=parse_shard(shard), **threads
    )  # fmt: skip
    limits: dict[str, Any] = {"max_len": max_len, "max_windows": max_windows, "tokens_per_batch": batch_tokens}
    limits |= {"min_tokens": min_tokens, "floor": floor}
    scores = o.read_scores(heads)
    job = Job(model, device, dtype, revision, choose_heads(scores, heads, top, share), mode, tuple(limits.items()), scores)
    if estimate or output is None:
        run_estimate(inputs, job, options, sample, machine or [], json)
        return
    cluster = ask_ray(actors, cpus, gpus) if runner == "ray" else None
    summary = run_score(inputs, output, job, options, cluster, json)
    if not summary.complete:
        raise typer.Exit(1)


def _check_runner(context: typer.Context, runner: str, estimate: bool) -> None:
    if runner not in ("local", "ray"):
        raise HeadwiseError(f"unknown runner {runner!r}; use local or ray")
    if runner != "ray":
        o.refuse_unused(context, ("actors", "cpus", "gpus"), "goes with --runner ray; leave it out")
    if not estimate:
        o.refuse_unused(context, ("sample", "machine"), "goes with --estimate; leave it out")


def choose_heads(scores: HeadScores, path: Path, top: int | None, share: float | None) -> HeadSet:
    """The `top` strongest heads of a head file (at `path`), or a share of all (rounded up; the paper takes 5 %).

    Refused if one of them scored 0: what is left of a choice then is the order of heads (card, section 4).
    """
    from headwise.methods.influence.proxy import SHARE, top_share

    if top is not None and share is not None:
        raise HeadwiseError("give --top or --share, not both: each says how many heads are ablated")
    if top is None:
        return top_share(scores, SHARE if share is None else share)
    chosen = scores.top(top)
    if not scores.values[chosen.heads[-1]] > 0:
        positive = int((scores.values > 0).sum())
        raise HeadwiseError(f"--top {top} takes heads with a score of 0; only {positive} heads of {path} score above 0")
    return chosen


@dataclass(frozen=True)
class Job:
    """How to make the scorer; can be sent to another process. limits: options of `AttentionInfluence`. scores: what `heads` come from."""

    model: str | None
    device: str
    dtype: str
    revision: str | None
    heads: HeadSet
    mode: str
    limits: tuple[tuple[str, Any], ...]
    scores: HeadScores

    def make(self) -> DocumentScorer:
        """Load the model and make its scorer. Raises `HeadwiseError` for heads of another model and wrong limits."""
        from headwise.methods.influence.scorer import AttentionInfluence

        loaded = o.load(self.model, self.device, self.dtype, self.revision)
        loaded.check(self.heads)
        o.tell_other_model(self.scores, loaded)
        return AttentionInfluence(loaded, self.heads, self.mode, **dict(self.limits))


def make_scorer(job: Job) -> DocumentScorer:
    """`job.make`, by a name that can be sent to another process."""
    return job.make()


def ask_ray(actors: str, cpus: float, gpus: float) -> RayOptions:
    """`N` or `least:most` actors of so many cores and GPUs."""
    least, _, most = actors.partition(":")
    if not (least.isdecimal() and (most or least).isdecimal()):
        raise HeadwiseError(f"--actors is a number or least:most, like 4 or 1:8; got {actors!r}")
    return RayOptions((int(least), int(most or least)), cpus, gpus)


def run_score(
    inputs: Sequence[str], output: str, job: Job, options: ScoreOptions, cluster: RayOptions | None, json: bool
) -> Summary:
    """Score, and say what was done."""
    from headwise.report.console import print_all

    make = partial(make_scorer, job)
    with progress("scoring", hidden=json) as report:
        if cluster is None:
            from headwise.corpus.local_runner import score_files

            summary = score_files(inputs, output, make, options, report)
        else:
            from headwise.corpus.ray_runner import score_files_with_ray

            summary = score_files_with_ray(inputs, output, make, options, report, cluster)
    if json:
        o.print_json({"scores": output, "heads": [str(head) for head in job.heads], **summary.to_json()})
    else:
        print_all(*summary.lines(), f"scores  {output}")
    return summary


def run_estimate(inputs: Sequence[str], job: Job, options: ScoreOptions, rows: int, machines: Sequence[str], json: bool) -> None:
    """Measure a sample and say what the whole would take."""
    from headwise.corpus.estimate import estimate_cost
    from headwise.report.console import print_all

    known = [_machine(text) for text in machines]
    found = estimate_cost(inputs, job.make(), options, rows, machines=known)
    if json:
        o.print_json(found.to_json())
        return
    print_all(*found.lines())


def _machine(text: str) -> Machine:
    from headwise.corpus.estimate import Machine

    name, _, value = text.partition("=")
    speed, _, cost = value.partition(":")
    try:
        if cost:
            return Machine(name, flop_per_second=float(speed), flop_per_token=float(cost))
        return Machine(name, tokens_per_second=float(speed))
    except HeadwiseError:
        raise
    except ValueError as error:
        raise HeadwiseError(
            f"--machine is NAME=TOKENS/S or NAME=FLOPS:FLOP_PER_TOKEN, like H100=250000 or H100=4e14:7.6e9; got {text!r}"
        ) from error
