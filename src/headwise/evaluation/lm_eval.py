"""lm-evaluation-harness on a model in its present state, ablated or not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headwise.heads import HeadSet, HeadwiseError, MissingExtraError
from headwise.heads.types import Heads
from headwise.models.model import describe_model

# Harness's name -> ours. Its `versions` are those of task definitions; ours are those of packages.
KEPT = {
    "results": "results",
    "groups": "groups",
    "group_subtasks": "group_subtasks",
    "versions": "task_versions",
    "n-shot": "n-shot",
}
KEPT |= {"higher_is_better": "higher_is_better", "n-samples": "n-samples"}


def run_lm_eval(
    model: Any,
    tasks: Sequence[str],
    limit: int | None = None,
    include_path: Path | None = None,
    heads: Heads | None = None,
    mode: str | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness; call it inside `with ablate(hf, heads, mode, scope="all")` for an ablated model.

    Args:
        model: A model with its tokenizer.
        tasks: Names of tasks, groups or tags.
        limit: At most this many items per task.
        include_path: Folder with task files of your own (read once per process).
        heads: What the open block takes away, to be recorded with the results.
        mode: How it does so.
        batch_size: Items in one pass.

    Returns:
        Plain data: `results` {task or group: {metric: value}}, `ablation` {mode, scope, heads, chosen_by} or None, `task_versions` of the
        definitions, `versions` of packages (lm-eval's too), and the model.

    Raises:
        MissingExtraError: lm-eval is not installed.
        HeadwiseError: Unknown tasks, or heads named outside of an open block.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise MissingExtraError("lm-eval", "lm-eval") from error
    ablation = _described(model.hf, None if heads is None else model.check(heads), mode)
    manager = _task_manager(None if include_path is None else str(include_path.resolve()))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        raise HeadwiseError(
            f"lm-eval knows no task {', '.join(map(repr, unknown)) or '(none given)'}; see `lm_eval ls tasks` or give include_path"
        )
    # The harness may add a pad token to the tokenizer, so it gets its own.
    hf = HFLM(pretrained=model.hf, tokenizer=copy.deepcopy(model.tokenizer), batch_size=batch_size, backend="causal")
    found = simple_evaluate(
        hf,
        tasks=list(tasks),
        limit=limit,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
        confirm_run_unsafe_code=False,
    )
    stated = describe_model(model)
    stated["versions"] |= {"lm-eval": version("lm_eval")}
    kept = {ours: found[theirs] for theirs, ours in KEPT.items() if theirs in found}
    return stated | {"tasks": list(tasks), "limit": limit, "ablation": ablation} | kept


@cache
def _task_manager(include_path: str | None) -> Any:
    """The harness's index of tasks, read once per process: that takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _described(model: Any, heads: HeadSet | None, mode: str | None) -> dict[str, Any] | None:
    """The open ablation as plain data. Results must never carry the heads of an ablation that was not running."""
    inside = getattr(model.config, "_attn_implementation", None) == "headwise"
    if (heads is None) != (mode is None):
        raise HeadwiseError("give both heads and mode of the open ablate block, or neither")
    if heads is not None and not inside:
        raise HeadwiseError("heads were named, but no ablate block is open; call run_lm_eval inside `with ablate(...)`")
    if heads is None:
        return None
    return {"mode": mode, "scope": "all", "heads": [str(head) for head in heads], "chosen_by": heads.chosen_by}
