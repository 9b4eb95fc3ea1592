"""`headwise detect --score copy` and `--score semantic`: both ask needle questions and keep finished parts until there is a result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwise.cli.progress import progress

if TYPE_CHECKING:
    from headwise.heads import HeadScores
    from headwise.models.model import Model
    from headwise.prompts.grid import Task
    from headwise.runtime.rundir import RunDirectory


def needle_heads(
    loaded: Model,
    task: Task,
    semantic: bool,
    path: Path,
    rule: str | None,
    match: str,
    until_stable: bool,
    extremes: str,
    least_runs: int,
    gate: float,
    max_new_tokens: int,
    json: bool,
) -> tuple[HeadScores, RunDirectory]:
    """Copy or semantic scores of all heads, and where the parts lie: beside `path`."""
    from headwise.heads.errors import NoSuccessfulRunError
    from headwise.methods.compresskv import semantic as by_meaning
    from headwise.methods.copy import run as copy
    from headwise.runtime.rundir import RunDirectory

    find: Any
    options: Any
    if semantic:
        find, options = by_meaning.find_semantic_heads, by_meaning.SemanticOptions(extremes, gate, max_new_tokens, least_runs)
        run = by_meaning.describe_run(loaded, task, options)
    else:
        find, options = copy.find_copy_heads, copy.CopyOptions(rule or "set", match, gate, max_new_tokens, until_stable)
        run = copy.describe_run(loaded, task, options)
    directory = RunDirectory(path.with_name(path.name + ".run"), run)
    try:
        with progress("detecting", hidden=json) as report:
            return find(loaded, task, options, directory, report), directory
    except NoSuccessfulRunError:
        directory.remove()
        raise
