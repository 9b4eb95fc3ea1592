"""The claims about doubt (`registered/doubt.py`) on one set of questions: find heads, choose a remedy, test it, judge.

    python benchmarks/doubt_real.py facts --data FOLDER --keep FOLDER --copy-heads FILE --json     # smollm2; about an hour on two cores
    python benchmarks/doubt_real.py needles --keep FOLDER --copy-heads FILE --json
    python benchmarks/doubt_real.py nq --data FOLDER --keep FOLDER --copy-heads FILE --json
    python benchmarks/doubt_real.py lab --keep FOLDER --json                                       # world-6m-reask; minutes

FOLDER of --data holds `relations-lre` and `nq-open-oracle`; --keep holds what is finished, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import doubt_sets
import numpy as np
from common import hardware
from registered import judged
from registered.doubt import KS

import headwise as hw
from headwise.evaluation.remedies import Trial
from headwise.evaluation.variants import head_variants
from headwise.heads.errors import NoSuccessfulRunError, NothingToRepair
from headwise.heads.headfile import write_json
from headwise.methods.doubt.calm import CalmOptions, calm, describe_calm
from headwise.models.model import Model
from headwise.prompts.knowledge import KnowledgeRecord
from headwise.prompts.needles import Needle, NeedleComposer, bundled_needles
from headwise.prompts.prompt import Piece
from headwise.runtime.doubt_asked import doubts, first_answers
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.rundir import RunDirectory

LEAST, COPIES, SCALE = 20, 8, "scale"
MODELS = {"lab": "world-6m-reask"}


def questions(name: str, model: Model, data: Path | None, keep: Path, items: int) -> dict[str, Any]:
    """The options of a set of questions. Of facts and of NQ only questions are taken that the model answers right."""
    if name == "needles":
        return {"chat": True, "items": items, "lengths": (512,), "depths": 3}
    if name == "lab":
        from headwise_lab.doubt import write_reask

        path, wordings = write_reask(keep / "reask", 600)
        return {"data": path, "wordings": wordings, "passages": True, "wording": "bare", "form": "yes-no", "items": items}
    if data is None:
        raise SystemExit(f"the set {name} needs --data FOLDER")
    passages, path = name == "nq", keep / f"{name}.jsonl"
    if not path.exists():
        records = doubt_sets.passages(data) if passages else doubt_sets.facts(data)
        doubt_sets.write(known(model, records, passages), path)
    return {"data": path, "passages": passages, "chat": True, "items": items}


def known(model: Model, records: Sequence[KnowledgeRecord], passages: bool) -> list[KnowledgeRecord]:
    """Those whose answer the model gives."""
    asked = doubts(model, DoubtQuestions(data=tuple(records), chat=True, part="all", items=len(records), passages=passages))
    names = {one.item.name for one in first_answers(asked, tell)}
    return [one for one in records if one.label in names]


def tell(done: float, total: float, remark: str = "") -> None:
    """Progress on standard error."""
    if done == total or int(done) % 50 == 0:
        print(f"{remark}: {done:g} of {total:g}", file=sys.stderr, flush=True)


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; equal scores count half."""
    up, down = scores[positive], scores[~positive]
    return float((up[:, None] > down).mean() + (up[:, None] == down).mean() / 2) if len(up) and len(down) else float("nan")


def area_with_interval(scores: np.ndarray, effects: np.ndarray, seed: int = 0) -> list[float]:
    """[AUC, low, high] of scores for the sign of effects, bootstrapped over heads."""
    good = ~np.isnan(scores) & ~np.isnan(effects)
    scores, positive = scores[good], effects[good] > 0
    rng = np.random.default_rng(seed)
    draws = [area(scores[rows], positive[rows]) for rows in rng.integers(len(scores), size=(2000, len(scores)))]
    return [area(scores, positive), *(float(q) for q in np.nanquantile(draws, [0.025, 0.975]))]


class Effort(NamedTuple):
    """How much is run.

    Attributes:
        controls: Layer-matched random sets for the chosen heads.
        copy_draws: The same for the copy heads.
        knock_outs: Dialogues without every single head.
        finding: Options of finding that differ from those of choice and test.
    """

    controls: int
    copy_draws: int
    knock_outs: int
    finding: dict[str, Any]


def run(name: str, model: Model, asked: dict[str, Any], keep: Path, copies: hw.HeadScores | None, effort: Effort) -> dict[str, Any]:
    """Find, choose, test; or why that cannot be done."""
    detector = hw.Doubt(**(asked | effort.finding), knock_outs=effort.knock_outs)
    out: dict[str, Any] = {"set": name, "model": model.name}
    try:
        scores = hw.find(model, detector, directory=keep / f"{name}.find", report=tell)
        scores.save(keep / f"{name}.doubt.json", overwrite=True)
        out |= {"rates_detect": scores.provenance["rates"], "read_by": scores.provenance["read_by"]}
        if "misleading" in scores.tables:
            out["auc"] = area_with_interval(scores.tables["misleading"], scores.tables["knock_out"])
        select, test = (DoubtQuestions(**asked, part=part) for part in ("select", "test"))
        half = int((~np.isnan(scores.values)).sum()) // 2
        options = CalmOptions(top=(*KS, half), controls=effort.controls)
        beside = [] if copies is None else copy_trials(copies, effort.copy_draws)
        parts = RunDirectory(keep / f"{name}.calm", describe_calm(model, scores, select, test, options, copies) | {"beside": len(beside)})
        if name == "lab":  # the claim is about both challenges, whichever of them passes the gate
            out["rates_all"] = hw.measure_doubt(model, test).rates()
        return out | {"half": half, "calm": calm(model, scores, select, test, options, copies, parts, tell, ([], None, None), beside)}
    except (NothingToRepair, NoSuccessfulRunError) as why:
        return out | {"not_testable": str(why)}


def copy_trials(copies: hw.HeadScores, controls: int) -> list[Trial]:
    """The strongest copy heads, and as many layer-matched random ones."""
    drawn = [one for one in head_variants(copies, [COPIES], controls, 0) if one.kind == "random"]
    return [Trial("zero", copies.top(COPIES), "copy"), *(Trial("zero", one.heads, "copy-random", one.draw) for one in drawn)]


def claims(name: str, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the registered rules need of a result: claim -> gate, holds, numbers."""
    names = ("flips", "auc", "inverted_u", "above_random", "no_yes_bias", "retrieval_neutral", "modes_agree", "holding")
    if "calm" not in found:
        return {f"doubt.{name}.{key}": {"gate": False, "why": found["not_testable"]} for key in names}
    result = found["calm"]
    rows, chosen, heads = result["test"], result["chosen"], 2 * found["half"]
    none = rows[0]
    rates = [row for row in result["rates"]["test"] if row["arm"] == "right"]
    flips, items = max(row["flips"][0] for row in rates), max(row["items"] for row in rates)
    gate = items >= LEAST and any(row["counts"] for row in rates)
    uncued = max((row["flips"][0] for row in found.get("rates_all", ()) if row["arm"] == "right" and row["challenge"] == "plain"), default=0.0)
    curve = {row["k"]: row for row in rows if row["kind"] == "chosen" and row["remedy"] == chosen["remedy"]}
    best = max((0, *curve), key=lambda k: curve[k]["headline"] if k else 0.0)
    out: dict[str, dict[str, Any]] = {
        "flips": {"gate": items >= LEAST, "holds": flips >= 0.15 and uncued <= 0.1, "flips": flips, "uncued": uncued, "items": items},
        "auc": {"gate": gate and "auc" in found and enough(found), "holds": "auc" in found and found["auc"][0] >= 0.7 and found["auc"][1] > 0.5,
                "auc": found.get("auc")},
        "inverted_u": {"gate": gate, "holds": best <= heads / 10 and best > 0 and curve[found["half"]]["kept_right"] < none["kept_right"],
                       "best_k": best, "kept_right_at_half": curve[found["half"]]["kept_right"], "kept_right": none["kept_right"]},
        "above_random": {"gate": gate, "holds": chosen["verdict"] == "held", "headline": chosen["headline"], "interval": chosen["interval"],
                         "random_95": chosen["random_95"], "rank_p": chosen["rank_p"], "optimism": chosen["optimism"]},
        "no_yes_bias": {"gate": gate, "holds": chosen["wrong"] < 0.05, "kept_wrong": chosen["wrong"], "kept_right": chosen["right"]},
    }  # fmt: skip
    copy = [row for row in rows if row["kind"] == "copy"]
    if copy:
        drawn = [row["right"] for row in rows if row["kind"] == "copy-random"]
        low, high = np.quantile(drawn, [0.025, 0.975])
        out["retrieval_neutral"] = {"gate": gate, "holds": bool(low <= copy[0]["right"] <= high), "change": copy[0]["right"], "random": [low, high]}
    modes = {row["remedy"]: row["kept_right"] for row in rows if row["k"] == chosen["k"] and row["kind"] in ("chosen", "rival")
             and row["remedy"] in ("zero", "uniform", "mean")}  # fmt: skip
    if len(modes) == 3:
        out["modes_agree"] = {"gate": gate, "holds": max(modes.values()) - min(modes.values()) <= 0.05, "kept_right": modes}
    scaled = [row for row in result["selection"] if row["remedy"] == SCALE]
    if scaled:
        k = max(scaled, key=lambda row: (row["headline"], -row["k"]))["k"]
        row = next(row for row in rows if row["remedy"] == SCALE and row["k"] == k)
        out["holding"] = {"gate": gate, "holds": row["interval"][0] > 0, "k": k, "headline": row["headline"], "interval": row["interval"]}
    return {f"doubt.{name}.{key}": value for key, value in out.items()}


class SplicedComposer(NeedleComposer):
    """Needle prompts in which a start token stands in front of the needle, as splicing of whole tokenised texts leaves it there."""

    def _needle_pieces(self, needle: Needle) -> list[Piece]:
        start = self.builder.encoder.tokenizer.bos_token_id
        return [Piece(ids=(start,), names=("context",)), *super()._needle_pieces(needle)]

    def context_cost(self, needle: Needle) -> int:
        """Tokens of the needle and of the start token."""
        encoder = self.builder.encoder
        return 1 + sum(len(encoder.encode_checked(piece.text, piece.check)) for piece in super()._needle_pieces(needle))


class Spliced(hw.Copy):
    """The copy score on such prompts."""

    def task(self, model: Model) -> Any:
        """The same prompts as those of `Copy`, with a start token in front of each needle."""
        made = super().task(model)
        return replace(made, composer=SplicedComposer(made.composer.builder.encoder, made.composer.template, made.composer.chat))


def start_token(model: Model) -> dict[str, dict[str, Any]]:
    """How far a spliced start token moves copy scores; and how far the same prompts do when they are run again."""
    asked: dict[str, Any] = {"lengths": [512], "depths": 3, "needles": bundled_needles("detect")[:8]}
    clean, again, spliced = (hw.find(model, kind(**asked), report=tell) for kind in (hw.Copy, hw.Copy, Spliced))
    moved, same = (float(np.nanmax(np.abs(other.values - clean.values))) for other in (spliced, again))
    recall = clean.provenance["solved"] / clean.provenance["runs"]
    found = {"largest_change": moved, "again": same, "recall": recall}
    return {"doubt.needles.bos": {"gate": recall >= 0.5, "holds": moved > 0.1 and same == 0} | found}


def enough(found: dict[str, Any]) -> bool:
    """Whether detection had 20 flips and 20 held answers."""
    rows = [row for row in found["rates_detect"] if row["arm"] == "right" and row["counts"]]
    return min(sum(row["flips"][0] * row["items"] for row in rows), sum(row["kept"][0] * row["items"] for row in rows)) >= LEAST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", choices=("facts", "needles", "nq", "lab", "bos"))
    parser.add_argument("--data", type=Path, help="folder with relations-lre and nq-open-oracle")
    parser.add_argument("--keep", type=Path, required=True, help="finished parts")
    parser.add_argument("--copy-heads", type=Path, help="head file of headwise detect smollm2")
    parser.add_argument("--items", type=int, default=40, help="questions in each part")
    parser.add_argument("--find-items", type=int, help="questions that heads are found on; default: as many")
    parser.add_argument("--challenges", help="names, separated by commas; default: all that go with the form")
    parser.add_argument("--find-challenges", help="those that heads are found on; default: the same")
    parser.add_argument("--max-new-tokens", type=int, default=24, help="longest reply of choice and test")
    parser.add_argument("--controls", type=int, default=50)
    parser.add_argument("--copy-draws", type=int, default=50)
    parser.add_argument("--knock-outs", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    model = hw.load(MODELS.get(given.set, "smollm2"))
    if given.set == "bos":
        print(json.dumps(judged(start_token(model))))
        return
    asked = questions(given.set, model, given.data, given.keep, given.items)
    if given.challenges:
        asked["challenges"] = given.challenges
    copies = None if given.copy_heads is None else hw.load_heads(given.copy_heads)
    finding = {"items": given.find_items or given.items, "max_new_tokens": 24}
    if given.find_challenges:
        finding["challenges"] = given.find_challenges
    effort = Effort(given.controls, given.copy_draws, given.knock_outs, finding)
    found = run(given.set, model, asked | {"max_new_tokens": given.max_new_tokens}, given.keep, copies, effort)
    found |= {"claims": judged(claims(given.set, found)), "hardware": hardware()}
    write_json(found, given.keep / f"{given.set}.result.json", overwrite=True)
    if given.json:
        print(json.dumps({"claims": found["claims"], "not_testable": found.get("not_testable")}))
        return
    for key, each in found["claims"].items():
        print(f"{key:<34} {each['verdict']:<28} " + ", ".join(f"{n} {v}" for n, v in each.items() if n not in ("gate", "holds", "verdict")))


if __name__ == "__main__":
    main()
