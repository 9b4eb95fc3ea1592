"""The result of an ablation sweep: every metric of every variant and item, and the rows that sum it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.evaluation.variants import MORE_CONTROLS, Kind, Variant
from headwise.heads.headfile import write_json
from headwise.stats.paired import bootstrap_mean, rank_p, sign_flip_test

METRICS = ("recall", "exact", "logprob")
DRAWS = 2_000  # bootstrap draws per interval
KINDS: tuple[Kind, ...] = ("top", "bottom", "random")  # in every sweep
Table = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class AblationResult:
    """What an ablation sweep measured.

    Attributes:
        variants: Which heads were taken away; the first is `none`.
        items: One description per prompt, with the answer of the whole model.
        values: Metric -> [variant, item]: `recall` and `exact` in [0, 1], `logprob` of the whole gold line in nats.
        losses: [variant, window] mean loss on plain text in nats per token, heads ablated at *every* position (scope `all`) whatever the
            scope of `values`; NaN: not measured.
        seed: Of the intervals and tests.
        provenance: All that is needed to repeat the sweep.
    """

    variants: tuple[Variant, ...]
    items: tuple[Mapping[str, Any], ...]
    values: Mapping[str, Table]
    losses: Table
    seed: int
    provenance: Mapping[str, Any]

    @property
    def perplexities(self) -> Table:
        """[variant] perplexity of plain text under scope `all`; NaN = not measured."""
        return np.exp(self.losses.mean(axis=1)) if self.losses.size else np.full(len(self.variants), np.nan)

    def rows_of(self, kind: Kind, k: int) -> list[int]:
        """Rows of `values` and `losses` that belong to the variants of one kind and K.

        Args:
            kind: `none`, `top`, `bottom` or `random`.
            k: Heads taken away; 0 for `none`.

        Returns:
            Indices into `variants`; one, but for random draws.
        """
        return [i for i, variant in enumerate(self.variants) if (variant.kind, variant.k) == (kind, k)]

    def summary(self) -> list[Row]:
        """Means, what they are worth, and what they are compared with: one row per metric, K and kind.

        Returns:
            Rows with
            `mean`, `low`, `high`: mean over items and its 95 % interval (needles resampled: the prompts of one needle are no independent evidence;
            with a single needle, prompts take the place of needles);
            `drop`, `drop_low`, `drop_high`: the same of none minus this;
            `p_paired`: two-sided sign-flip test over needles against the mean random draw, and `p_rank`: `rank_p` among the draws;
            random rows are means over draws (geometric ones for perplexity), with `draws`, the value of each, and `sd_draws`, their standard
            deviation (None for one draw).
            Rows of `any_layer` and `norm` are random rows, too, and hold the same two p-values of the top heads against their own draws.
            Rows of `perplexity` (scope `all`) have intervals over windows; there a negative drop is a loss.
        """
        ks = sorted({variant.k for variant in self.variants} - {0})
        places: list[tuple[Kind, int]] = [("none", 0), *((kind, k) for k in ks for kind in KINDS)]
        more = [(kind, k) for k in ks for kind in MORE_CONTROLS if self.rows_of(kind, k)]
        rows = [self._row(metric, kind, k) for metric in self.values for kind, k in (*places, *more)]
        return rows + ([self._perplexity_row(kind, k) for kind, k in places] if self.losses.size else [])

    def table(self) -> str:
        """The summary as lines of plain text: one per metric and K, K = 0 for the whole model; random: mean and standard deviation of draws."""
        found = {(row["metric"], row["kind"], row["k"]): row for row in self.summary()}
        lines = [("metric", "K", "top", "95 % CI", "random", "weakest", "p rank")]
        for metric, k in dict.fromkeys((metric, k) for metric, _, k in found):
            top = found[metric, "top" if k else "none", k]
            random, weakest = (found.get((metric, kind, k)) for kind in ("random", "bottom"))
            lines.append(
                (
                    metric,
                    str(k),
                    _said(top["mean"]),
                    f"{_said(top['low'])} to {_said(top['high'])}",
                    *_beside(random, weakest, top),
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(_aligned(line, widths) for line in lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; NaN becomes null."""
        return {
            **self.provenance,
            "items": len(self.items),
            "item_info": [dict(item) for item in self.items],
            "variants": [
                {
                    "kind": v.kind,
                    "k": v.k,
                    "draw": v.draw,
                    "heads": [str(head) for head in v.heads],
                    "chosen_by": v.heads.chosen_by,
                }
                for v in self.variants
            ],
            "values": {metric: _numbers(table) for metric, table in self.values.items()},
            "perplexity": {"scope": "all", "windows": self.losses.shape[1], "values": _numbers(self.perplexities)},
            "summary": self.summary(),
        }

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the result as JSON, atomically.

        Args:
            path: Where to.
            overwrite: Replace an existing file; it is never merged.

        Raises:
            HeadwiseError: The file exists and is not to be replaced, or it cannot be written.
        """
        write_json(self.to_json(), path, overwrite)

    def _row(self, metric: str, kind: Kind, k: int) -> Row:
        table = self.values[metric]
        means, found = table.mean(axis=1), self.rows_of(kind, k)
        units = self._by_needle(table)
        items = units[found].mean(axis=0)
        mean, low, high = bootstrap_mean(items, draws=DRAWS, seed=self.seed)
        row: Row = {"metric": metric, "kind": kind, "k": k, "mean": mean, "low": low, "high": high}
        if kind == "none":
            return row
        row |= dict(
            zip(("drop", "drop_low", "drop_high"), bootstrap_mean(units[0] - items, draws=DRAWS, seed=self.seed), strict=True)
        )
        if kind == "random":
            return row | _spread(means[found])
        more = kind in MORE_CONTROLS
        controls, (one,) = (found, self.rows_of("top", k)) if more else (self.rows_of("random", k), found)
        p_paired = sign_flip_test(units[one] - units[controls].mean(axis=0), seed=self.seed)
        p_rank = rank_p(means[one], means[controls])
        return row | (_spread(means[found]) if more else {}) | {"p_paired": p_paired, "p_rank": p_rank}

    def _by_needle(self, table: Table) -> Table:
        """[variant, needle]: means over the prompts of each needle; the items themselves if there is one needle only."""
        needle = np.asarray([item.get("needle", i) for i, item in enumerate(self.items)])
        kinds = np.unique(needle)
        return np.stack([table[:, needle == kind].mean(axis=1) for kind in kinds], axis=1) if len(kinds) > 1 else table

    def _perplexity_row(self, kind: Kind, k: int) -> Row:
        found = [i for i in self.rows_of(kind, k) if not np.isnan(self.losses[i]).any()]
        interval = bootstrap_mean(self.losses[found].mean(axis=0), draws=DRAWS, seed=self.seed)
        mean, low, high = (float(np.exp(loss)) for loss in interval)
        row: Row = {"metric": "perplexity", "kind": kind, "k": k, "mean": mean, "low": low, "high": high}
        if kind != "none":
            row["drop"] = float(self.perplexities[0]) - mean
        return row | (_spread(self.perplexities[found]) if kind == "random" else {})


def _spread(means: Table) -> Row:
    """The means of random draws, and their standard deviation."""
    return {"draws": means.tolist(), "sd_draws": float(means.std(ddof=1)) if len(means) > 1 else None}


def _beside(random: Row | None, weakest: Row | None, top: Row) -> tuple[str, str, str]:
    """Random draws, weakest heads and p of a line; nothing for the whole model."""
    spread = "" if random is None or not random["sd_draws"] else f" ± {_said(random['sd_draws'])}"
    p = top.get("p_rank")
    return (
        "" if random is None else _said(random["mean"]) + spread,
        "" if weakest is None else _said(weakest["mean"]),
        "" if p is None else f"{p:.2g}",
    )


def _said(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    """The first column to the left, numbers to the right."""
    first, *rest = zip(line, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]).rstrip()


def _numbers(table: Table) -> Any:
    """Lists with six decimals; what is not finite becomes null."""
    return (
        [_numbers(row) for row in table]
        if table.ndim > 1
        else [None if not np.isfinite(x) else round(float(x), 6) for x in table]
    )
