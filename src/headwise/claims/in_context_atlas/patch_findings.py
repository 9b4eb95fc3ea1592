"""What patched runs say about the claims of sufficiency, and the table behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.in_context_atlas.declared_steer import TOLD
from headwise.claims.in_context_atlas.parts import ends, paired
from headwise.stats.paired import rank_p

Values = np.ndarray
Table = Mapping[str, Values]


class Counts(NamedTuple):
    """How many heads are patched.

    Attributes:
        main: In most claims.
        few: In the claim that few do not suffice.
        ks: All numbers.
        all_rows: Numbers of random heads where every row is patched, which costs a pass of the whole text.
        draws: Random sets of heads per number.
    """

    main: int
    few: int
    ks: tuple[int, ...]
    all_rows: tuple[int, ...]
    draws: int


@dataclass(frozen=True)
class Found:
    """What was measured: shares and flips by variant.

    Attributes:
        cells: Key of a variant -> `log_odds` and `top`, [item].
        right: [item] first token of the right answer.
        swapped: [item] that of the swapped one.
        counts: Numbers of heads.
    """

    cells: Mapping[str, Table]
    right: Values
    swapped: Values
    counts: Counts

    def share(self, rows: str, name: str) -> Values:
        """[item] restored share of the log-odds: 0 as the patched run was, 1 as in the run with the other answer."""
        low, high = (self.cells[f"{rows}-nothing-in-{base}"]["log_odds"] for base in ("corrupted", "clean"))
        share = (self.cells[f"{rows}-{name.replace(' ', '-')}"]["log_odds"] - low) / (high - low)
        return np.asarray(1 - share if name.startswith("reverse") else share)

    def flips(self, rows: str, name: str) -> Values:
        """[item] 1 where the most probable token is the other run's answer."""
        wanted = self.swapped if name.startswith("reverse") else self.right
        return np.asarray(self.cells[f"{rows}-{name.replace(' ', '-')}"]["top"] == wanted, dtype=float)

    def draws(self, of: Callable[[str, str], Values], rows: str, k: int) -> Values:
        """[draw, item] of `share` or `flips`."""
        return np.stack([of(rows, f"random {k} draw {draw}") for draw in range(self.counts.draws)])

    @property
    def gate(self) -> dict[str, Number]:
        """Records that count, and how far all heads are from restoring 1."""
        away = max(float(np.abs(self.share(rows, "every head") - 1).max()) for rows in TOLD)
        return {"records": float(len(self.right)), "every_head_error": round(away, 5)}


def findings(found: Found) -> dict[str, Finding]:
    """Key -> finding."""
    main, gate = found.counts.main, found.gate
    context = found.share("last", f"context {main}")
    stranger = found.share("last", f"stranger {main}")
    out: dict[str, Finding] = {}
    for rows in TOLD:
        out |= _of_rows(found, rows)
    out["patch.own_answer"] = paired(context - stranger, chosen=ends(context), stranger=ends(stranger), **gate)
    elsewhere = ends(found.share("last", f"elsewhere {main}"))
    out["patch.elsewhere"] = Finding({"share": elsewhere, "there": ends(context), **gate})
    return out


def _of_rows(found: Found, rows: str) -> dict[str, Finding]:
    """Claims that are made for the last row and for all rows."""
    main, few, gate = found.counts.main, found.counts.few, found.gate
    share, drawn = found.share(rows, f"context {main}"), found.draws(found.share, rows, main)
    copy, flips = found.share(rows, f"copy {main}"), found.flips(rows, f"context {main}")
    drawn_flips, drawn_few = found.draws(found.flips, rows, main).mean(axis=0), found.draws(found.share, rows, few)
    chosen, random = ends(share), ends(drawn.mean(axis=0))
    rank = round(rank_p(-float(share.mean()), -drawn.mean(axis=1)), 4)  # rank_p counts draws that are as low; here as high
    return {
        f"patch.half.{rows}": Finding({"share": chosen, "random": random, **gate}),
        f"patch.above_random.{rows}": paired(share - drawn.mean(axis=0), chosen=chosen, random=random, rank_p=rank, **gate),
        f"patch.few.{rows}": Finding({"share": ends(found.share(rows, f"context {few}")), "random": ends(drawn_few.mean(axis=0)), **gate}),
        f"patch.flips.{rows}": paired(flips - drawn_flips, chosen=ends(flips), random=ends(drawn_flips), **gate),
        f"patch.above_copy.{rows}": paired(share - copy, chosen=chosen, copy=ends(copy), **gate),
        f"patch.reverse.{rows}": Finding({"share": ends(found.share(rows, f"reverse {main}")), "there": chosen, **gate}),
    }


def table(found: Found) -> dict[str, Any]:
    """Kind of heads -> restored share with its interval, and share of flips; random heads over all draws, with their spread."""
    out: dict[str, Any] = {}
    for rows in TOLD:
        own = [name for name in found.cells if name.startswith(rows) and "draw" not in name]
        for name in (key.removeprefix(f"{rows}-").replace("-", " ") for key in own):
            out[f"{rows}: {name}"] = [*ends(found.share(rows, name)), _mean(found.flips(rows, name))]
        for k in found.counts.ks if rows == "last" else found.counts.all_rows:
            shares, flips = found.draws(found.share, rows, k), found.draws(found.flips, rows, k)
            out[f"{rows}: random {k}"] = [*ends(shares.mean(axis=0)), _mean(flips)]
            means = np.sort(shares.mean(axis=1))
            out[f"{rows}: random {k}, lowest and highest draw"] = [_mean(means[0]), _mean(means[-1])]
    return out


def _mean(values: Any) -> float:
    return round(float(np.mean(values)), 4)
