"""Figures of head scores, needle grids and ablations, written as .png or .svg by the name of the path.

Every function refuses another suffix, and data that cannot be drawn, with a `HeadwiseError`; without matplotlib (extra `report`) it raises
`MissingExtraError`. An existing file is replaced. The `draw_...` functions of this package return the same figures without writing them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from headwise.heads.types import HeadScores
from headwise.report.ablation_curves import draw_ablation_curves
from headwise.report.canvas import write_figure
from headwise.report.distribution import draw_distribution
from headwise.report.heat_map import draw_heat_map
from headwise.report.needle_grid import draw_needle_grid


def heat_map(scores: HeadScores, path: Path) -> None:
    """Write the map of all heads, layer by head."""
    write_figure(lambda: draw_heat_map(scores), path)


def distribution(scores: HeadScores, path: Path) -> None:
    """Write the sorted scores of all heads."""
    write_figure(lambda: draw_distribution(scores), path)


def needle_grid(cells: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write mean recall by length and depth.

    Args:
        cells: rows with length (tokens), depth and recall (both in [0, 1]), as in provenance["cells"].
        path: of the picture.
    """
    write_figure(lambda: draw_needle_grid(cells), path)


def ablation_curves(result: Mapping[str, Any], path: Path) -> None:
    """Write an ablation sweep, metric against number of heads.

    Args:
        result: the JSON data of the ablation.
        path: of the picture.
    """
    write_figure(lambda: draw_ablation_curves(result), path)
