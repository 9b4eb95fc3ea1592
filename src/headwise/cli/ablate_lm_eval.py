"""`headwise ablate --task lm-eval:NAME`: any task of lm-evaluation-harness, with heads ablated."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.cli import options as o
from headwise.cli.progress import progress
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.evaluation.ablation import AblationOptions
    from headwise.heads import HeadScores
    from headwise.models.model import Model


def run_task(
    loaded: Model, scores: HeadScores, task: str, options: AblationOptions, limit: int | None, include_path: Path | None, path: Path,
    overwrite: bool, json: bool,
) -> None:  # fmt: skip
    """Run the task on the whole model, with each top K ablated, and with random draws of as many heads; write and print the results."""
    from headwise.attention import ablate
    from headwise.evaluation.ablation import CALIBRATED, calibrated
    from headwise.evaluation.lm_eval import run_lm_eval
    from headwise.evaluation.perplexity import text_windows
    from headwise.evaluation.variants import describe_scores, head_variants
    from headwise.heads.headfile import write_json
    from headwise.models.model import describe_model
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.haystack import Haystack, bundled_texts
    from headwise.runtime.rundir import RunDirectory

    prefix, _, name = task.partition(":")
    if prefix != "lm-eval" or not name:
        raise HeadwiseError(f"unknown task {task!r}; use needle or lm-eval:NAME")
    windows = None
    if options.mode in CALIBRATED:
        haystack = Haystack(bundled_texts(), PieceEncoder(loaded.tokenizer))
        windows = text_windows(haystack, 8, min(512, loaded.positions or 512) - 1, (0.9, 0.95))
    filling = calibrated(loaded, options, windows)
    variants = [
        variant for variant in head_variants(scores, options.top, options.controls, options.seed) if variant.kind != "bottom"
    ]
    stated = {
        "task": task,
        "limit": limit,
        "options": asdict(options),
        "head_file": describe_scores(scores),
        **describe_model(loaded),
    }
    directory = RunDirectory(path.with_name(path.name + ".run"), stated)
    runs: list[dict[str, Any]] = []
    with progress(task, hidden=json) as report:
        for number, variant in enumerate(variants):
            heads = variant.heads if len(variant.heads) else None
            cell = directory.load(f"variant{number:03d}")
            if cell is None:
                block = ablate(loaded.hf, heads, mode=options.mode, scope="all", **filling) if heads else nullcontext()
                with block:
                    found = run_lm_eval(loaded, [name], limit, include_path, heads, options.mode if heads else None)
                cell = {}, [{"kind": variant.kind, "k": variant.k, "draw": variant.draw, **found}]
                directory.save(f"variant{number:03d}", *cell)
            runs += cell[1]
            report(number + 1, len(variants), f"{variant.kind} {variant.k or ''}".strip())
    write_json({"task": task, "mode": options.mode, "scope": "all", "seed": options.seed, "runs": runs}, path, overwrite)
    directory.remove()
    if json:
        o.print_json({"result": str(path), "runs": [{k: run[k] for k in ("kind", "k", "draw", "results")} for run in runs]})
        return
    from headwise.report.console import lm_eval_table, print_all

    print_all(lm_eval_table(runs), f"mode {options.mode}, scope all", f"result     {path}")
