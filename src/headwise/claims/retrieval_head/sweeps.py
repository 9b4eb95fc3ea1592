"""Ablation sweeps and the numbers that claims about them are judged by: what is left, what is lost, intervals over needles."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headwise.claims.claim import Number
from headwise.claims.experiment import Bench
from headwise.claims.retrieval_head.scores import with_ends
from headwise.evaluation.ablation import AblationOptions, ablation_curve, describe_run
from headwise.evaluation.ablation_table import AblationResult, Row
from headwise.heads import HeadScores
from headwise.heads.progress import Report, silent
from headwise.prompts.grid import Task
from headwise.stats.paired import bootstrap_mean

DRAWS = 2000
HALF = 0.5  # of what the whole model does
THIRD = 1 / 3  # the most that random heads may cost, as a share of what the top heads cost
Values = NDArray[np.float64]


def swept(
    bench: Bench, scores: HeadScores, task: Task, options: AblationOptions, part: str, texts: tuple[Tensor, Tensor], perplexity: bool = True,
    report: Report = silent,
) -> Sweep:  # fmt: skip
    """An ablation sweep whose finished parts are kept."""
    directory = bench.cells(part, describe_run(bench.model, scores, task, options))
    given = asdict(options) | {"texts": texts, "perplexity": perplexity}
    return Sweep(ablation_curve(bench.model, scores, task=task, directory=directory, report=report, **given))


@dataclass(frozen=True)
class Sweep:
    """Items of several variants of a model, and what claims say about them.

    Attributes:
        result: Variants, items, values.
    """

    result: AblationResult

    @cached_property
    def rows(self) -> list[Row]:
        """The summary of `AblationResult`."""
        return self.result.summary()

    def row(self, metric: str, kind: str, k: int = 0) -> Row:
        """The one row of the summary.

        Args:
            metric: `recall`, `exact` or `perplexity`.
            kind: none, top, random, any_layer, norm or bottom.
            k: Number of heads; 0 with none.
        """
        return next(row for row in self.rows if (row["metric"], row["kind"], row["k"]) == (metric, kind, k))

    def units(self, metric: str, kind: str, k: int = 0) -> Values:
        """[needle]: means over the prompts of each needle (items, where there is one needle only), and over draws."""
        table = self.result.values[metric][self.result.rows_of(kind, k)].mean(axis=0)  # type: ignore[arg-type]
        needle = np.asarray([item.get("needle", i) for i, item in enumerate(self.result.items)])
        kinds = np.unique(needle)
        return np.array([table[needle == one].mean() for one in kinds]) if len(kinds) > 1 else table

    def mean(self, metric: str, kind: str, k: int = 0) -> Number:
        """Mean over items with its interval over needles."""
        row = self.row(metric, kind, k)
        return row["mean"], row["low"], row["high"]

    def loss(self, metric: str, kind: str, k: int) -> Number:
        """What the whole model has more, with its interval over needles."""
        row = self.row(metric, kind, k)
        return row["drop"], row["drop_low"], row["drop_high"]

    def left(self, metric: str, kind: str, k: int) -> Number:
        """What is left as a share of the whole model's, with its interval over needles; NaN: the whole model has nothing."""
        whole, other = self.units(metric, "none"), self.units(metric, kind, k)
        means = self.row(metric, kind, k)["mean"], self.row(metric, "none")["mean"]
        if means[1] <= 0:
            return float("nan")
        picks = np.random.default_rng(self.result.seed).integers(len(whole), size=(DRAWS, len(whole)))
        over = whole[picks].mean(axis=1)
        drawn = np.where(over > 0, other[picks].mean(axis=1) / np.where(over > 0, over, 1.0), np.nan)
        return with_ends(means[0] / means[1], drawn)

    def over_third(self, metric: str, kind: str, k: int) -> Number:
        """The loss minus a third of the top heads' loss, with its interval over needles."""
        whole, top, other = (self.units(metric, *which) for which in (("none", 0), ("top", k), (kind, k)))
        _, low, high = bootstrap_mean(whole - other - THIRD * (whole - top), draws=DRAWS, seed=self.result.seed)
        return self.row(metric, kind, k)["drop"] - THIRD * self.row(metric, "top", k)["drop"], low, high

    def difference(self, metric: str, kind: str, other: str, k: int) -> Number:
        """What is kept without the heads of one kind minus what is kept without those of another, with its interval over needles."""
        apart = self.units(metric, kind, k) - self.units(metric, other, k)
        mean, low, high = bootstrap_mean(apart, draws=DRAWS, seed=self.result.seed)
        return mean, low, high

    def p(self, metric: str, kind: str, k: int) -> float:
        """Sign flips over needles of the top heads against the mean draw of a kind."""
        return float(self.row(metric, "top" if kind == "random" else kind, k)["p_paired"])

    def random_costs_less(self, metric: str, kind: str, k: int) -> dict[str, Number]:
        """The numbers of a claim that random heads of a kind cost at most a third of what the top heads cost."""
        return {
            "over_third": self.over_third(metric, kind, k),
            "loss": self.loss(metric, kind, k),
            "top_loss": self.loss(metric, "top", k),
            "sd_of_draws": self.row(metric, kind, k)["sd_draws"] or 0.0,
            "draws": len(self.row(metric, kind, k)["draws"]),
            "k": k,
        }

    def table(self, *metrics: str) -> list[dict[str, Any]]:
        """The rows of the summary for pages."""
        return [row for row in self.rows if row["metric"] in metrics]
