"""`headwise detect`: score every head of a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwise.cli import options as o
from headwise.cli.detect_gate import gate_heads
from headwise.cli.detect_needle import needle_heads
from headwise.cli.detect_proxy import proxy_heads
from headwise.cli.detect_query import query_heads
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.heads import HeadScores
    from headwise.runtime.rundir import RunDirectory


SCORES = ("copy", "semantic", "query", "gate", "proxy")
Score = Annotated[
    str,
    typer.Option(
        help="copy (heads that copy a needle), semantic (heads that look at the needle while it is said), query (heads that look from a "
        "question to what answers it), gate (heads that cannot do without the middle of the text) or proxy (heads that copy the value of a "
        "key in a JSON object)."
    ),
]
Rule = Annotated[
    str | None,
    typer.Option(
        help="copy, proxy: set (share of needle tokens copied) or multiset (as the released code counts). "
        "query: mass, calibrated_mass, ndcg, mrr or contrastive.",
        show_default="set; calibrated_mass",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="query: JSON lines with query, passages and gold.", show_default="64 needle questions over passages of novels"
    ),
]
Span = Annotated[str, typer.Option(help="query: average over all behind the passages (`official`) or the `query`'s words only.")]
Layout = Annotated[str, typer.Option(help="query: wording around passages: plain or instructed.")]
Match = Annotated[str, typer.Option(help="token, or position (the aligned needle position only).")]
Gate = Annotated[
    float,
    typer.Option(
        help="copy, semantic: a run counts if its unigram recall is above this. proxy: share of questions that the model must answer."
    ),
]
Samples = Annotated[int, typer.Option(help="proxy: number of prompts.")]
Pairs = Annotated[int | None, typer.Option(help="proxy: pairs in the JSON object.", show_default="as many as fit")]
KeyLength = Annotated[
    int | None, typer.Option(help="proxy: characters of a key.", show_default="32, 8 in prompts below 1024 tokens")
]
Extremes = Annotated[str, typer.Option(help="semantic: keep the depths 0 and 1, or drop them.")]
LeastRuns = Annotated[int, typer.Option(help="semantic: with fewer solved runs there is no ranking.")]
Steps = Annotated[int, typer.Option(help="gate: training steps.")]
HeadWindow = Annotated[
    str | None,
    typer.Option(
        "--window",
        help="gate: first and most recent tokens that a head is left with.",
        show_default="128,256, less for short texts",
    ),
]
LayerOrder = Annotated[
    bool, typer.Option("--layer-order", help="gate: also measure in which order whole layers may stream, for zigzag's rule Z5.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer in tokens.")]
UntilStable = Annotated[bool, typer.Option("--until-stable", help="Stop when two halves of the runs agree on the top 16.")]
PaperGrid = Annotated[bool, typer.Option("--paper-grid", help="20 lengths x 10 depths x 3 needles, as Wu et al.")]


def detect(
    model: o.ModelName = None,
    score: Score = "copy",
    lengths: o.Lengths = None,
    depths: o.Depths = 10,
    windows: o.Windows = 1,
    needles: o.Needles = None,
    haystack: o.Haystack = None,
    template: o.Template = None,
    chat: o.Chat = False,
    rule: Rule = None,
    data: Data = None,
    span: Span = "official",
    layout: Layout = "plain",
    match: Match = "token",
    gate: Gate = 0.5,
    max_new_tokens: MaxNewTokens = 50,
    extremes: Extremes = "keep",
    least_runs: LeastRuns = 30,
    steps: Steps = 2000,
    window: HeadWindow = None,
    layer_order: LayerOrder = False,
    samples: Samples = 800,
    pairs: Pairs = None,
    key_length: KeyLength = None,
    until_stable: UntilStable = False,
    paper_grid: PaperGrid = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Find retrieval heads by one of five scores; a head file and a heat map are written."""
    if score not in SCORES:
        raise HeadwiseError(f"unknown score {score!r}; known: {', '.join(SCORES)}")
    path, given = o.output_path(output, model, score, overwrite), (model, device, dtype, revision)
    if score == "query":
        return tell(query_heads(*given, data, rule, span, layout, chat, seed, json), path, overwrite, json)
    if score == "gate":
        return tell(gate_heads(*given, lengths, steps, window, haystack, seed, json, layer_order), path, overwrite, json)
    if score == "proxy":
        scores, parts = proxy_heads(*given, path, lengths, samples, pairs, key_length, haystack, rule, gate, seed, json)
        return tell(scores, path, overwrite, json, parts)
    from headwise.prompts.grid import even_depths, paper_lengths

    wanted = None if lengths is None else o.numbers(lengths, "lengths")
    loaded = o.load(model, device, dtype, revision)
    task = o.make_task(
        loaded, split="detect", lengths=paper_lengths(loaded.positions) if paper_grid else wanted, depths=even_depths(depths),
        windows=windows, needles=needles, haystack=haystack, template=template, chat=chat, seed=seed,
    )  # fmt: skip
    task = task.first_needles(3) if paper_grid else task
    scores, parts = needle_heads(
        loaded, task, score == "semantic", path, rule, match, until_stable, extremes, least_runs, gate, max_new_tokens, json
    )
    tell(scores, path, overwrite, json, parts)


def tell(scores: HeadScores, path: Path, overwrite: bool, json: bool, parts: RunDirectory | None = None) -> None:
    """Write the head file and the heat map, and say what was found. parts: of the run, no longer needed then."""
    from headwise.cli.pictures import draw, picture_line
    from headwise.heads import save_heads
    from headwise.report.console import print_all
    from headwise.report.figures import heat_map
    from headwise.report.tables import head_table, summary_lines

    picture = draw(partial(heat_map, scores), path.with_suffix(".heatmap.png"))
    save_heads(scores, path, overwrite)  # last: while it is missing, the same command goes on and draws the picture again
    if json:
        from headwise.report.show import facts_of

        o.print_json({"head_file": str(path), "heat_map": picture, **facts_of(scores)})
    else:
        print_all(head_table(scores), *summary_lines(scores), f"head file  {path}", *picture_line(picture, "heat map"))
    if parts:
        parts.remove()
