"""Right answers under challenge on one set of questions: find heads, choose a remedy, test it, and what the registered rules need of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import headwise as hw
from headwise.claims.claim import Finding, Number
from headwise.claims.copy_heads import copy_heads
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.claims.unwanted_uncertainty import questions
from headwise.claims.unwanted_uncertainty.copying import COPIES
from headwise.claims.unwanted_uncertainty.declared import LEAST, draws_of
from headwise.evaluation.challenged import measure_doubt
from headwise.evaluation.remedies import REMEDIES, Trial
from headwise.evaluation.variants import head_variants
from headwise.heads.errors import NoSuccessfulRunError, NothingToRepair
from headwise.methods.doubt.calm import CalmOptions, calm, describe_calm
from headwise.runtime.doubt_questions import DoubtQuestions

KS = (1, 2, 3, 5, 10, 20)
NAMES = ("flips", "auc", "inverted_u", "above_random", "no_yes_bias", "retrieval_neutral", "modes_agree", "holding")
CUT = ("zero", "uniform", "mean")
SCALE, PLAIN = "scale", "plain"  # the second is the lab's challenge without a cue
NAMED = "choice,suggestion"  # challenges that name an option, which the four cases look at
NOTHING = "nothing to repair: no challenge takes back 15 % of right answers, and not all, both on `select` and on `test`"
SHOWN = 20  # rows of a table name their heads up to so many

Found = dict[str, Any]


class Effort(NamedTuple):
    """How much is run.

    Attributes:
        find: Questions that heads are found on.
        items: Questions of `select`, and of `test`.
        knock_outs: Dialogues that are run without every single head.
        tops: Numbers of heads K, besides half of them.
        remedies: That are tried.
        draws: Layer-matched random sets, for the chosen heads and for the copy heads.
    """

    find: int
    items: int
    knock_outs: int
    tops: tuple[int, ...]
    remedies: tuple[str, ...]
    draws: int


def effort(bench: Bench, name: str = "") -> Effort:
    """Sizes for a set of questions; the small version has too few right answers for most gates, but runs every step."""
    if bench.quick:
        return Effort(16 if bench.real else 32, 12 if bench.real else 24, 2, (1, 2), (*CUT, SCALE), 4)
    return Effort(40, 28 if bench.real else 40, 12, KS, REMEDIES, draws_of(name))


def chat_of(bench: Bench) -> bool:
    """Whether the model is asked through its chat template: where it has one."""
    return bool(getattr(bench.model.tokenizer, "chat_template", None))


def facts(bench: Bench) -> Measured:
    """Facts that the model knows by heart; the paper's yes or no is tried on them, too."""
    chat = chat_of(bench)
    read = questions.facts(bench.folder("relations-lre"), per_relation=bench.pick(questions.PER_RELATION, 8))
    known = tuple(questions.known(bench, "facts", read, False, chat))
    if not known:
        raise NotTestable("the model knows none of the facts by heart")
    asked = {"data": known, "chat": chat, "challenges": NAMED, "max_new_tokens": 24}
    measured = calmed(bench, "facts", asked)
    return Measured({**measured.findings, "doubt.smollm2.yes_no": yes_no(bench, known, chat)}, measured.details)


def nq(bench: Bench) -> Measured:
    """Questions behind their passage."""
    chat = chat_of(bench)
    read = questions.passages(bench.folder("nq-open-oracle"), most=bench.pick(400, 100))
    known = tuple(questions.known(bench, "nq", read, True, chat))
    if not known:
        raise NotTestable("the model answers none of the questions from their passages")
    return calmed(bench, "nq", {"data": known, "chat": chat, "passages": True, "challenges": NAMED, "max_new_tokens": 24})


def needles(bench: Bench) -> Measured:
    """Bundled needles."""
    length = 512 if bench.real else 256
    return calmed(bench, "needles", {"chat": chat_of(bench), "lengths": (length,), "depths": bench.pick(3, 1), "challenges": NAMED})


def yes_no(bench: Bench, known: tuple[Any, ...], chat: bool) -> Finding:
    """Whether the paper's question is answered by yes or no."""
    options = DoubtQuestions(data=known, chat=chat, form="yes-no", part="test", items=effort(bench).items, seed=bench.seed)
    try:
        told = measure_doubt(bench.model, options, bench.cells("yes-no", {"items": options.items, "chat": chat}), bench.report)
    except NoSuccessfulRunError as why:
        return Finding.none(str(why))
    return Finding({"coherent": round(float(np.mean([one != "incoherent" for one in told.outcomes])), 4)})


def calmed(bench: Bench, name: str, asked: Mapping[str, Any], cued: bool = False) -> Measured:
    """The claims about one set of questions.

    Args:
        bench: The bench.
        name: Of the set, in the keys of claims.
        asked: Options of `DoubtQuestions`.
        cued: See `findings`.
    """
    found = run(bench, name, asked)
    return Measured({f"doubt.{name}.{key}": one for key, one in findings(found, cued).items()}, details(found))


def run(bench: Bench, name: str, asked: Mapping[str, Any]) -> Found:
    """Find, choose, test; or why that cannot be done. Rates on `test` are told in any case."""
    model, sizes, report = bench.model, effort(bench, name), bench.report
    given = dict(asked) | {"seed": bench.seed}
    select, test = (DoubtQuestions(**given, part=part, items=sizes.items) for part in ("select", "test"))
    out: Found = {"heads": model.heads.shape[0] * model.heads.shape[1]}
    try:
        told = measure_doubt(model, test, bench.cells(f"{name}-rates", {"items": sizes.items}), report)
        out |= {"rates_test": told.rates(), "right_test": len({one.item.digest for one in told.dialogues if one.arm == "right"})}
        if out["right_test"] < LEAST and not bench.quick:  # an hour of remedies would tell nothing
            return out | {"not_testable": f"{out['right_test']} questions of `test` are answered right at first; {LEAST} are needed"}
        chosen_on = measure_doubt(model, select, bench.cells(f"{name}-select", {"items": sizes.items}), report).rates()
        if not counting(chosen_on) & counting(out["rates_test"]) and not bench.quick:
            return out | {"rates_select": chosen_on, "not_testable": NOTHING}
        detector = hw.Doubt(**given, items=sizes.find, knock_outs=sizes.knock_outs)
        scores = bench.find(detector)
        out |= {"rates_detect": scores.provenance["rates"], "strongest": [str(head) for head in scores.top(min(20, len(scores.ranking()) // 2))]}
        if "misleading" in scores.tables:
            out["auc"] = area_with_interval(scores.tables["misleading"], scores.tables["knock_out"], bench.seed)
        half = len(scores.ranking()) // 2
        options = CalmOptions(tuple(k for k in sizes.tops if k < half) + (half,), sizes.remedies, sizes.draws, seed=bench.seed)
        copies = copies_of(bench, scores)
        beside = [] if copies is None else copy_trials(copies, sizes.draws, bench.seed)
        parts = bench.cells(f"{name}-calm", describe_calm(model, scores, select, test, options, copies) | {"beside": len(beside)})
        return out | {"half": half, "calm": calm(model, scores, select, test, options, copies, parts, report, None, beside)}
    except (NothingToRepair, NoSuccessfulRunError) as why:
        return out | {"not_testable": str(why)}


def counting(rates: list[Found]) -> set[str]:
    """The challenges that pass the gate."""
    return {row["challenge"] for row in rates if row["arm"] == "right" and row["counts"]}


def copies_of(bench: Bench, scores: hw.HeadScores) -> hw.HeadScores | None:
    """Copy scores, where the model solves needles and has enough heads for controls."""
    try:
        return copy_heads(bench) if len(scores.ranking()) >= 2 * COPIES else None
    except NotTestable:
        return None


def copy_trials(copies: hw.HeadScores, draws: int, seed: int) -> list[Trial]:
    """The strongest copy heads, and as many layer-matched random ones."""
    drawn = [one for one in head_variants(copies, [COPIES], draws, seed) if one.kind == "random"]
    return [Trial("zero", copies.top(COPIES), "copy"), *(Trial("zero", one.heads, "copy-random", one.draw) for one in drawn)]


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; equal scores count half."""
    up, down = scores[positive], scores[~positive]
    return float((up[:, None] > down).mean() + (up[:, None] == down).mean() / 2) if len(up) and len(down) else float("nan")


def area_with_interval(scores: np.ndarray, effects: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """(AUC, low, high) of scores for the sign of effects, bootstrapped over heads."""
    good = ~np.isnan(scores) & ~np.isnan(effects)
    scores, positive = scores[good], effects[good] > 0
    rng = np.random.default_rng(seed)
    draws = np.array([area(scores[rows], positive[rows]) for rows in rng.integers(len(scores), size=(2000, len(scores)))])
    low, high = np.quantile(draws[~np.isnan(draws)], [0.025, 0.975]) if not np.isnan(draws).all() else (float("nan"), float("nan"))
    return area(scores, positive), float(low), float(high)


def findings(found: Found, cued: bool = False) -> dict[str, Finding]:
    """Name -> finding, of what `run` told.

    Args:
        found: Of `run`.
        cued: Whether a challenge called `plain` must take back little, and another one much.
    """
    rates = [row for row in found.get("rates_test", ()) if row["arm"] == "right"]
    out = {"flips": flips(rates, found["right_test"], cued)} if rates else {}
    if "calm" in found:
        gate = passed(found["calm"])
        made = {"auc": auc(found), "inverted_u": inverted_u(found), **chosen(found["calm"])}
        made |= {"retrieval_neutral": copying(found["calm"]), "modes_agree": modes(found["calm"]), "holding": holding(found["calm"])}
        out |= {name: one if one.missing else Finding({**one.numbers, **gate}) for name, one in made.items()}
    return {name: out.get(name) or Finding.none(found["not_testable"]) for name in NAMES}


def passed(result: Found) -> dict[str, Number]:
    """The numbers of the gate: challenges that count in both parts, right first answers in each."""
    rates = {part: [row for row in result["rates"][part] if row["arm"] == "right"] for part in ("select", "test")}
    items = {f"right_{part}": float(max((row["items"] for row in rows), default=0)) for part, rows in rates.items()}
    return {"challenges": float(len(counting(result["rates"]["select"]) & counting(result["rates"]["test"]))), **items}


def flips(rates: list[Found], questions: int, cued: bool) -> Finding:
    """The challenge that takes back most, and where challenges are cued the plain one beside it."""
    plain = [row for row in rates if cued and row["challenge"] == PLAIN]
    most = max((row for row in rates if row not in plain), key=lambda row: row["flips"][0])
    numbers: dict[str, Number] = {"flips": tuple(most["flips"]), "right_test": float(questions)}
    if cued:
        numbers["uncued"] = tuple(plain[0]["flips"])
    return Finding(numbers, note=f"challenge: {most['challenge']}")


def auc(found: Found) -> Finding:
    """How well `misleading` tells the sign of a head's effect, and on how many dialogues it was found."""
    if "auc" not in found:
        return Finding.none("no challenge that counts in `detect` names an option")
    rows = [row for row in found["rates_detect"] if row["arm"] == "right" and row["counts"]]
    told = {name: float(sum(round(row[kind][0] * row["items"]) for row in rows)) for name, kind in (("flipped", "flips"), ("held", "kept"))}
    return Finding({"auc": found["auc"], **told})


def inverted_u(found: Found) -> Finding:
    """The best number of heads for the chosen remedy, and what half of all heads do."""
    rows, remedy = found["calm"]["test"], found["calm"]["chosen"]["remedy"]
    curve = {row["k"]: row for row in rows if row["kind"] == "chosen" and row["remedy"] == remedy}
    best = max((0, *curve), key=lambda k: curve[k]["headline"] if k else 0.0)
    half = curve[found["half"]]
    note = f"best K {best} of {found['heads']} heads, {remedy}"
    return Finding({"best_share": best / found["heads"], "change_at_half": (half["right"], *half["right_interval"])}, note=note)


def chosen(result: Found) -> dict[str, Finding]:
    """The chosen remedy beside random sets, and on wrong answers."""
    row = result["chosen"]
    random = float("nan") if row["random_95"] is None else row["random_95"]
    numbers = {"headline": (row["headline"], *row["interval"]), "random_95": random, "above_random": row["headline"] - random}
    wrong = {name: (row[name], *row[f"{name}_interval"]) for name in ("wrong", "right")}
    note = f"{row['remedy']} of {row['k']} heads, {row['draws']} random sets, optimism of the choice {row['optimism']:.2f}"
    return {"above_random": Finding(numbers, note=note), "no_yes_bias": Finding(wrong, note=note)}


def copying(result: Found) -> Finding:
    """The top copy heads in the second turn, among random sets."""
    copies = [row for row in result["test"] if row["kind"] == "copy"]
    drawn = [row["right"] for row in result["test"] if row["kind"] == "copy-random"]
    if not copies or not drawn:
        return Finding.none("the model solves too few needles to have copy heads, or has too few heads for controls")
    (row,), (low, high) = copies, np.quantile(drawn, [0.025, 0.975])
    numbers: dict[str, Number] = {"change": (row["right"], *row["right_interval"]), "random_mean": (float(np.mean(drawn)), float(low), float(high))}
    return Finding(numbers | {"above_low": row["right"] - float(low), "below_high": float(high) - row["right"]})


def modes(result: Found) -> Finding:
    """Three ways to cut the same heads."""
    k = result["chosen"]["k"]
    own = [row for row in result["test"] if row["k"] == k and row["kind"] in ("chosen", "rival")]
    kept = {row["remedy"]: row["kept_right"] for row in own if row["remedy"] in CUT}
    if len(kept) < len(CUT):
        return Finding.none("not all three modes could be tried")
    told = ", ".join(f"{name} {value:.2f}" for name, value in sorted(kept.items()))
    return Finding({"largest_difference": max(kept.values()) - min(kept.values())}, note=f"kept with {k} heads: {told}")


def holding(result: Found) -> Finding:
    """The heads that hold on, made stronger."""
    scaled = [row for row in result["selection"] if row["remedy"] == SCALE]
    if not scaled:
        return Finding.none("scale was not tried")
    k = max(scaled, key=lambda row: (row["headline"], -row["k"]))["k"]
    row = next(row for row in result["test"] if row["remedy"] == SCALE and row["k"] == k)
    return Finding({"headline": (row["headline"], *row["interval"])}, note=f"{k} heads")


def details(found: Found) -> Found:
    """Tables for readers: rates of every challenge, and one row per trial."""
    out: Found = {key: found[key] for key in ("rates_test", "rates_select", "rates_detect", "strongest", "auc", "half") if key in found}
    if "calm" not in found:
        return out | {"not testable": found["not_testable"]}
    result = found["calm"]
    out |= {"rates": result["rates"], "read_by": result["read_by"], "dialogue": result["dialogue"]}
    out["chosen"] = {key: value for key, value in result["chosen"].items() if key != "heads"} | {"heads": result["chosen"]["heads"][:SHOWN]}
    for part in ("selection", "test"):
        out[part] = [row if row["k"] <= SHOWN else {key: value for key, value in row.items() if key != "heads"} for row in result[part]]
    return out
