"""What `headwise show` shows of each kind of result: lines to print, pictures drawn, and facts as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import RenderableType

from headwise.heads import HeadScores
from headwise.heads.plain import plain
from headwise.stats.agreement import gini, split_half_reliability

Shown = tuple[list[RenderableType], list[Path], dict[str, Any]]


def facts_of(scores: HeadScores, top: int = 10) -> dict[str, Any]:
    """Numbers of a head file that a script may want; missing ones are None."""
    ranking = scores.ranking()[:top]
    runs = scores.runs
    reliability = split_half_reliability(runs) if runs is not None else float("nan")
    return {
        "score": scores.score,
        "layers": scores.shape[0],
        "heads": scores.shape[1],
        "over_0.1": int((scores.values > 0.1).sum()),
        "over_0.5": int((scores.values > 0.5).sum()),
        "gini": plain(gini(scores.values)),
        "split_half_reliability": plain(reliability),
        "runs": scores.provenance.get("runs"),
        "solved": scores.provenance.get("solved"),
        "top": [{"head": str(head), "score": float(scores.values[head])} for head in ranking],
    }


def show_heads(scores: HeadScores, stem: Path, format: str, top: int) -> Shown:
    """Head table, heat map, distribution, and the needle grid if the file holds one."""
    from headwise.report.figures import distribution, heat_map, needle_grid
    from headwise.report.tables import head_table, summary_lines

    pictures = [stem.with_name(f"{stem.name}.{name}.{format}") for name in ("heatmap", "distribution")]
    heat_map(scores, pictures[0])
    distribution(scores, pictures[1])
    cells = scores.provenance.get("cells")
    if cells:
        pictures.append(stem.with_name(f"{stem.name}.grid.{format}"))
        needle_grid(cells, pictures[-1])
    return [head_table(scores, top), *summary_lines(scores)], pictures, facts_of(scores, top)


def show_result(data: dict[str, Any], stem: Path, format: str) -> Shown:
    """An ablation or a needle grid."""
    from headwise.report.console import grid_table
    from headwise.report.figures import ablation_curves, needle_grid
    from headwise.report.tables import ablation_table

    picture = stem.with_name(f"{stem.name}.{format}")
    if "summary" in data:
        ablation_curves(data, picture)
        return [ablation_table(data)], [picture], {"summary": data["summary"]}
    needle_grid(data["cells"], picture)
    return [grid_table(data["cells"])], [picture], {"recall": data["recall"], "exact": data["exact"]}
