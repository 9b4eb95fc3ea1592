"""The map of all heads in the characters of a terminal: layer by head, darker is stronger."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from headwise.heads.types import HeadScores
from headwise.report.numbers import count, neutral, noun, scored

STEPS = "·░▒▓█"
STYLES = ("dim", "yellow", "dark_orange", "red", "bold magenta")  # where the terminal has colours
MISSING = "×"
MARGIN, TICK = 6, 8  # columns for the names of layers; heads between two numbers of the first line
ROWS = 48  # maps of more layers leave out the layers without a head above the first step


@dataclass(frozen=True)
class TerminalMap:
    """One character (two where there is room) per head; nothing at all if the heads of a layer do not fit into one line.

    Attributes:
        scores: at least one head has a score.
    """

    scores: HeadScores

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines: numbers of heads, one line per layer, and what the characters mean."""
        layers, heads = self.scores.shape
        wide = next((width for width in (2, 1) if MARGIN + width * heads <= options.max_width), None)
        if wide is None:
            return
        steps, edges = stepped(self.scores)
        shown = [i for i in range(layers) if layers <= ROWS or (steps[i] > 1).any()]
        yield Text(" " * MARGIN + "".join(f"{head:<{TICK * wide}}" for head in range(0, heads, TICK)).rstrip(), style="dim")
        for layer in shown:
            line = Text(f"{f'L{layer}':<{MARGIN}}", style="dim")
            for step in steps[layer]:
                line.append(*((MISSING * wide, "dim") if step < 0 else (STEPS[step] * wide, STYLES[step])))
            yield line
        if len(shown) < layers:
            yield Text(
                f"{count(layers - len(shown), 'layer')} without a {noun(self.scores)} above {edges[1]:.2g} left out", style="dim"
            )
        ranges = [f"{STEPS[0]} up to {edges[0]:.2g}", *(f"{STEPS[i]} to {edges[i]:.2g}" for i in range(1, len(STEPS)))]
        missing = [f"{MISSING} not scored"] if (steps < 0).any() else []
        yield Text(" " * MARGIN + "   ".join([*ranges, *missing]), style="dim")


def stepped(scores: HeadScores) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Index into `STEPS` per head (-1: not scored), and the highest score of each step.

    The first step holds scores up to 0 (where no score is above 0: the lowest score); the others are equally wide.
    """
    known = scored(scores)
    high = float(known.max())
    start = neutral(scores) if high > neutral(scores) else float(known.min())
    edges = np.linspace(start, high, len(STEPS))
    steps = np.clip(np.searchsorted(edges, np.nan_to_num(scores.values), side="left"), 0, len(STEPS) - 1)
    return np.where(np.isnan(scores.values), -1, steps), edges
