"""What traced items say about the claims, and the tables behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headwise.claims.claim import Finding, Number
from headwise.claims.in_context_atlas.parts import ends, paired
from headwise.runtime.head_probe import Probe
from headwise.stats.paired import bootstrap_mean
from headwise.stats.probes import bootstrap_auc, reliability

AMONG = 10  # most likely tokens
KINDS = ("paired", "unrelated", "closed")
RIVALS = ("rows", "bm25", "learned")
Row = Mapping[str, Any]


def usable(rows: Sequence[Row]) -> list[Row]:
    """Items whose answers begin differently and whose swapped one is likely enough."""
    return [row for row in rows if not row.get("same") and row.get("read_rank", 0) < AMONG]


def probe_findings(name: str, every: Sequence[Row], probe: Probe) -> dict[str, Finding]:
    """Key -> finding of all claims about items with a swapped passage."""
    rows = usable(every)
    keys = [f"auc_{kind}" for kind in KINDS[:2]] + ["top1_passage", *(f"probe_above_{one}" for one in RIVALS), "relevance_as_good"]
    keys += ["ranks_as_leave_one_out", "heatmap_localises", "row_looks_beside"]
    if not rows:
        why = f"the swapped answer of no item begins with one of the model's {AMONG} most likely tokens"
        return {f"trace.{key}.{name}": Finding.none(why) for key in keys}
    auc, top = areas(rows, probe), {rival: hits(rows, rival) for rival in ("probe", "gim", *RIVALS)}
    caused: dict[str, Number] = {"caused": caused_by(rows)}
    found = {f"auc_{kind}": _of_area(auc[kind], len(rows)) for kind in KINDS[:2]}
    found["top1_passage"] = top_passage(rows)
    for rival in RIVALS:
        beside = {"probe": ends(top["probe"]), rival: ends(top[rival])}
        found[f"probe_above_{rival}"] = paired(top["probe"] - top[rival], **beside, **caused)
    both = {"gim": ends(top["gim"]), "probe": ends(top["probe"])}
    found["relevance_as_good"] = Finding({"difference": ends(top["gim"] - top["probe"]), **both, **caused})
    ranks = {rival: correlations(rows, rival) for rival in ("probe", "uniform")}
    found["ranks_as_leave_one_out"] = Finding({"correlation": ranks["probe"], "uniform": ranks["uniform"], **caused})
    return {f"trace.{key}.{name}": one for key, one in (found | tokens(rows)).items()}


def top_passage(rows: Sequence[Row]) -> Finding:
    """How often the probe's strongest passage holds the answer."""
    return Finding({"share": ends(hits(rows, "probe")), "uniform": ends(hits(rows, "uniform")), "caused": caused_by(rows)})


def tokens(rows: Sequence[Row]) -> dict[str, Finding]:
    """Whether the strongest token is one of the answer, by relevance and by the mean attention row."""
    offsets = [(row["rivals"]["attnlrp"]["offset"], row["rivals"]["rows"]["offset"]) for row in rows]
    known = np.array([pair for pair in offsets if None not in pair], dtype=float).reshape(-1, 2)
    if not len(known):
        why = "no item marks where its answer stands"
        return {key: Finding.none(why) for key in ("heatmap_localises", "row_looks_beside")}
    found = (known == 0).astype(float)
    both: dict[str, Number] = {"relevance": ends(found[:, 0]), "rows": ends(found[:, 1]), "read": float(len(rows))}
    both["row_within_2"] = ends(np.abs(known[:, 1]) <= 2)
    return {
        "heatmap_localises": Finding({"share": ends(found[:, 0]), **both}),
        "row_looks_beside": paired(found[:, 0] - found[:, 1], **both),
    }


def hits(rows: Sequence[Row], rival: str) -> np.ndarray:
    """[item] 1 where a rival's strongest passage holds the answer."""
    return np.array([float(row["rivals"][rival]["top1"]) for row in rows])


def caused_by(rows: Sequence[Row]) -> float:
    """Nats that answers lose on average without their top passage by leave one out."""
    return round(float(np.mean([row["rivals"]["leave_one_out"]["drop"] for row in rows])), 4)


def correlations(rows: Sequence[Row], rival: str) -> Number:
    """Mean rank correlation of passage scores with leave one out."""
    found = [row["rivals"][rival]["spearman"] for row in rows if row["rivals"][rival]["spearman"] is not None]
    return ends(found) if found else float("nan")


def _of_area(area: Mapping[str, Any], read: int) -> Finding:
    if "probe" not in area:
        return Finding.none("no word was said of which it is known that it was remembered")
    auc, low, high, positive, negative = area["probe"]
    rows = area["rows"][:3] if "rows" in area else [float("nan")] * 3
    numbers: dict[str, Number] = {"auc": (auc, low, high), "rows": (rows[0], rows[1], rows[2])}
    return Finding(numbers | {"read": float(read), "pairs": float(positive), "remembered": float(negative)})


def areas(rows: Sequence[Row], probe: Probe) -> dict[str, Any]:
    """Kind of negatives -> rival -> AUC with its interval over items and the two counts; and the calibration error of the probe."""
    out: dict[str, Any] = {}
    for kind in KINDS:
        chosen = [row for row in rows if kind != "paired" or row["remembered_rank"] < AMONG]
        found: dict[str, Any] = {}
        for name in rows[0]["paired"]:
            positive = [(i, row["rivals"][name]["read"]) for i, row in enumerate(chosen)]
            negative = [(i, row[kind][name]) for i, row in enumerate(chosen) if row[kind] and name in row[kind]]
            if not positive or not negative:
                continue
            scores = np.array([score for _, score in (*positive, *negative)])
            labels = np.arange(len(scores)) < len(positive)
            groups = np.array([i for i, _ in (*positive, *negative)])
            found[name] = [*(round(x, 4) for x in bootstrap_auc(scores, labels, groups)), len(positive), len(negative)]
            if name == "probe":
                found["calibration_error"] = round(reliability(probe.calibration.probability(scores), labels)[0], 4)
        out[kind] = found
    return out


def table(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Rival -> its means over items."""
    out = {}
    for name in rows[0]["rivals"] if rows else ():
        mine = [row["rivals"][name] for row in rows]
        offsets = [one["offset"] for one in mine if one["offset"] is not None]
        ranks = [one["spearman"] for one in mine if one["spearman"] is not None]
        out[name] = {
            "top-1 passage": [round(x, 4) for x in bootstrap_mean(hits(rows, name))],
            "source token": round(float(np.mean([offset == 0 for offset in offsets])), 4) if offsets else None,
            "within two tokens": round(float(np.mean([abs(offset) <= 2 for offset in offsets])), 4) if offsets else None,
            "drop without the top passage": round(float(np.mean([one["drop"] for one in mine])), 4),
            "rank correlation with leave one out": round(float(np.mean(ranks)), 4) if ranks else None,
        }
    return out
