"""Gates: which heads they name, whether those suffice, what other ways to find heads and other losses give, precision, and ways to read a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from headwise.attention import ablate
from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.caches.gated import gated, last_hidden
from headwise.caches.kept_cache import compress
from headwise.claims.cache_runs import Row, Runs, Test, Values, compared, needed, remembered, resampled, smallest
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured
from headwise.claims.intervals import interval
from headwise.claims.zigzagattention.passkeys import FOUND_AT, ROWS, SEEN, PassKeys, top
from headwise.evaluation.reading import continuation
from headwise.heads import HeadSet
from headwise.maths.gates import kept_count, strongest
from headwise.methods.duo.press import DuoAttention
from headwise.methods.duo.prompts import LabelledText
from headwise.methods.zigzag.formula import layer_pattern
from headwise.models.model import device_of
from headwise.stats.ranks import spearman

QUARTER, HALF = 0.25, 0.5
FEW = 0.125
PATTERNS = 20  # random ones
TIE_DRAWS = 20
PROFILED, DAMAGED = 10, 4  # texts
CHUNK = 64
PREFILLS = ("dense", "chunked", "windowed")
Numbers = dict[str, Number]


def measure(bench: Bench) -> Measured:
    """See the module."""
    keys = PassKeys(Runs(bench))
    full: Numbers = {"full": interval(keys.full)}
    findings: dict[str, Finding] = {}
    details: dict[str, Any] = {}
    for part in (_who, _enough, _profiles, _losses, _mixtures, _precision, _prefills):
        found, told = part(keys)
        findings |= {f"zigzag.{name}": Finding(full | numbers, p) for name, (numbers, p) in found.items()}
        details |= told
    return Measured(findings, details | {"full": full["full"], "texts": len(keys.block.ids)})


Part = tuple[dict[str, tuple[Numbers, float | None]], dict[str, Any]]


def _who(keys: PassKeys) -> Part:
    """Claim 1: rank correlations of gates with scores and damages."""
    tables = [keys.table("teacher", seed) for seed in keys.seeds]
    gates = np.mean(tables, axis=0).ravel()
    others = {f"{score} score": keys.per_kv(keys.runs.heads(score).values, np.max).ravel() for score in ("copy", "semantic")}
    others |= damages(keys)
    found = {name: resampled(spearman, gates, other) for name, other in others.items()}
    pairs = [spearman(one.ravel(), other.ravel()) for i, one in enumerate(tables) for other in tables[:i]]
    between = float(np.mean(pairs)) if pairs else float("nan")
    least = min((found[name] for name in ("copy score", "ablation")), key=lambda ends: ends[0])
    told = {"correlations of gates": found, "copy score with ablation": round(spearman(others["copy score"], others["ablation"]), 4)}
    by_layer = np.mean(tables, axis=(0, 2)).round(4).tolist()
    return {"gates_follow_copying": ({"least_correlation": least, "between_seeds": round(between, 4)}, None)}, told | {"mean gate by layer": by_layer}


def damages(keys: PassKeys) -> dict[str, Values]:
    """Loss of log-probability of the pass-keys' tokens without one KV head's query heads, and if it alone streams; one value per KV head."""
    model = keys.runs.model
    each = model.heads.shape[1] // model.heads.kv_heads
    groups = [(layer, head) for layer in model.heads.full_layers for head in range(model.heads.kv_heads)]
    texts = keys.texts("selection", 0, (FOUND_AT[1], FOUND_AT[1]), keys.runs.bench.pick(DAMAGED, 1))
    cells = keys.runs.cells("damages", texts=len(texts), seen=list(SEEN))
    rows = []
    for number, text in enumerate(texts):
        rows += remembered(cells, str(number), lambda text=text: [_damage(keys, text, groups, each)])  # type: ignore[misc]
        keys.runs.bench.report(number + 1, len(texts), "damages")
    return {name: np.mean([row[name] for row in rows], axis=0) for name in ("ablation", "streaming alone")}


@torch.no_grad()
def _damage(keys: PassKeys, text: LabelledText, groups: Sequence[tuple[int, int]], each: int) -> Row:
    """Both damages on one text, in nats per token."""
    wrapped, model = keys.runs.model, keys.runs.model.hf
    ids = torch.tensor([text.ids], device=device_of(model))
    wanted = ids[0, [place + 1 for place in text.places]]

    def loss(hidden: torch.Tensor) -> Values:
        logs = model.get_output_embeddings()(hidden).log_softmax(dim=-1)
        return np.asarray(-logs.gather(2, wanted.expand(len(hidden), -1)[..., None])[..., 0].mean(dim=1).double().cpu().numpy())

    whole = loss(last_hidden(model, ids, text.places))[0]
    sets = [HeadSet.of([(layer, each * head + i) for i in range(each)], wrapped.heads.shape) for layer, head in groups]
    ablated: list[float] = []
    for start in range(0, len(sets), ROWS):
        own = sets[start : start + ROWS]
        with ablate(model, own):
            ablated += (loss(last_hidden(model, ids.expand(len(own), -1), text.places)) - whole).tolist()
    streaming = []
    for place in range(len(groups)):
        alone = np.ones(keys.shape, dtype=bool)
        alone[np.unravel_index(place, keys.shape)] = False
        with gated(model, keys.whole(alone), SEEN):
            streaming.append(float(loss(last_hidden(model, ids, text.places))[0] - whole))
    return {"ablation": ablated, "streaming alone": streaming}


def _enough(keys: PassKeys) -> Part:
    """Claim 1: pass-keys with the top, the bottom and random quarters of the KV heads."""
    size, rng = int(np.prod(keys.shape)), np.random.default_rng([keys.runs.bench.seed, 47])
    count = kept_count(QUARTER, size)
    tables = [keys.table("teacher", seed) for seed in keys.seeds]
    patterns = {
        "top": [strongest(count, table)[0] for table in tables],
        "bottom": [strongest(count, -table)[0] for table in tables],
        "random": [strongest(count, rng.random(keys.shape))[0] for _ in range(keys.runs.bench.pick(PATTERNS, 4))],
        "none_whole": [np.zeros(keys.shape, dtype=bool)],
    }
    whole = keys.full
    shares = {name: resampled(_share, own, whole) for name, own in keys.all_answered(patterns).items()}
    found: dict[str, tuple[Numbers, float | None]] = {
        "top_gates_suffice": ({"top": shares["top"], "random": shares["random"]}, None),
        "random_patterns_fail": ({"random": shares["random"], "none_whole": shares["none_whole"]}, None),
        "bottom_gates_fail": ({"bottom": shares["bottom"], "random": shares["random"]}, None),
    }
    return found, {"share of the unchanged model's pass-keys": shares}


def _share(one: Values, whole: Values) -> float:
    return float(one.mean() / whole.mean()) if whole.any() else float("nan")


def _profiles(keys: PassKeys) -> Part:
    """Claim 2: gates against the attention that heads give to what a window would hide."""
    rows = ("all", "answers")
    profiles = {name: [mass_outside(keys, seed, name) for seed in keys.seeds] for name in rows}
    tests: dict[float, Test] = {}
    told: dict[str, Any] = {}
    for keep in (FEW, QUARTER, HALF):
        own = keys.mean_answered([top(keys.table("teacher", seed), keep) for seed in keys.seeds])
        each = {name: keys.mean_answered([top(table, keep) for table in tables]) for name, tables in profiles.items()}
        better = max(rows, key=lambda name, each=each: each[name].mean())  # type: ignore[misc]
        tests[keep] = compared(own, each[better])
        told[f"{keep:.1%}"] = {"gates": interval(own)} | {f"profile, {name} rows": interval(values) for name, values in each.items()}
    worst, at_quarter = smallest([tests[FEW], tests[QUARTER]]), told[f"{QUARTER:.1%}"]
    profile = max((at_quarter[f"profile, {name} rows"] for name in rows), key=lambda ends: ends[0])
    numbers: Numbers = {"difference": worst.ends, "at_half": tests[HALF].ends, "profile": profile}
    return {"gates_above_profile": (numbers, worst.p)}, {"gates and profiles": told}


def mass_outside(keys: PassKeys, seed: int, rows: str) -> Values:
    """[layer, KV head] mean share of the attention that falls outside of the window, over all rows or those of the answers."""
    texts = keys.texts("train", seed, FOUND_AT, keys.runs.bench.pick(PROFILED, 2))
    cells = keys.runs.cells(f"profile-{seed}-{rows}", texts=len(texts), seen=list(SEEN))
    found = [
        remembered(cells, str(number), lambda text=text: [{"mass": _mass(keys, text, rows).tolist()}])[0]["mass"]  # type: ignore[misc]
        for number, text in enumerate(texts)
    ]
    return np.asarray(np.mean(found, axis=0))


@torch.no_grad()
def _mass(keys: PassKeys, text: LabelledText, rows: str) -> Values:
    model, grid = keys.runs.model.hf, keys.runs.model.heads
    total = np.zeros((grid.shape[0], grid.kv_heads))

    def tap(call: Call) -> None:
        states = call.keys[0].repeat_interleave(call.query.shape[1] // call.keys[0].shape[1], dim=1)
        length = states.shape[2]
        query, key = torch.arange(length)[:, None].to(states.device), torch.arange(length, device=states.device)
        logits = call.query @ states.transpose(2, 3) * call.scaling
        logits = logits if call.softcap is None else call.softcap * torch.tanh(logits / call.softcap)
        weights = logits.masked_fill(key > query, -torch.inf).softmax(dim=-1)
        outside = (weights * ((key >= SEEN.sinks) & (query - key >= SEEN.recent))).sum(dim=-1)[0]
        asked = outside if rows == "all" else outside[:, list(text.places)]
        total[call.layer] = asked.mean(dim=1).view(grid.kv_heads, -1).mean(dim=1).double().cpu().numpy()

    with attached(model) as plan, plan.running(SimpleNamespace(look=tap)):
        last_hidden(model, torch.tensor([text.ids], device=device_of(model)), text.places[:1])
    return total[grid.full_layers]


def _kept(keys: PassKeys, kind: str, keep: float) -> Values:
    """[text] pass-keys with the best gates of one kind, mean over seeds."""
    return keys.mean_answered([top(keys.table(kind, seed), keep) for seed in keys.seeds])


def _losses(keys: PassKeys) -> Part:
    """Claim 3: labels of pass-keys against distillation over all tokens of the same texts, and over plain prose."""
    each = {(kind, keep): _kept(keys, kind, keep) for kind in ("teacher", "all tokens", "prose") for keep in (QUARTER, HALF)}
    test = compared(each["teacher", QUARTER], each["all tokens", QUARTER])
    prose = compared(each["teacher", QUARTER], each["prose", QUARTER])
    told = {f"{kind}, {keep:.0%}": interval(values) for (kind, keep), values in each.items()}
    return {"labels_above_all_tokens": ({"difference": test.ends, "prose": prose.ends}, test.p)}, {"losses": told}


def _mixtures(keys: PassKeys) -> Part:
    """Claim 4: the teacher's full attention against the model's own, by heads and by whole layers."""
    heads = {(kind, keep): _kept(keys, kind, keep) for kind in ("teacher", "self") for keep in (QUARTER, HALF)}
    layers = {(kind, keep): keys.mean_answered([_z1(keys, kind, seed, keep) for seed in keys.seeds]) for kind, keep in heads}
    alike = compared(heads["self", HALF], heads["teacher", HALF])
    apart = alike.ends if alike.ends[0] >= 0 else (-alike.ends[0], -alike.ends[2], -alike.ends[1])
    correlation = float(np.mean([spearman(*(keys.table(kind, seed).ravel() for kind in ("teacher", "self"))) for seed in keys.seeds]))
    better, quarter = (compared(layers["self", keep], layers["teacher", keep]) for keep in (HALF, QUARTER))
    both = {"heads": heads, "layers": layers}
    told = {f"{kind}, {what}, {keep:.0%}": interval(values) for what, own in both.items() for (kind, keep), values in own.items()}
    return {
        "mixtures_alike": ({"apart": apart, "correlation": round(correlation, 4)}, None),
        "self_better_by_layers": ({"difference": better.ends, "at_quarter": quarter.ends}, better.p),
    }, {"mixtures": told}  # fmt: skip


def _z1(keys: PassKeys, kind: str, seed: int, keep: float) -> Values:
    with needed("gates that differ between layers"):
        return np.repeat(layer_pattern(keys.table(kind, seed), keep).kept[:, None], keys.shape[1], axis=1)


def _precision(keys: PassKeys) -> Part:
    """Claim 5: float32 against bfloat16 gates; what deciding ties by other numbers gives."""
    told: dict[str, Any] = {}
    spreads: Numbers = {}
    for name, kind in (("float", "teacher"), ("half", "half")):
        rows = [_ties(keys, keys.table(kind, seed).clip(0, 1)) for seed in keys.seeds]
        spreads[f"{name}_spread"] = resampled(_spread, np.stack([right for _, right in rows], axis=1))
        told[name] = {part: round(float(np.mean([row[part] for row, _ in rows])), 4) for part in rows[0][0]} | {
            "right": round(float(np.mean([right for _, right in rows])), 4)
        }
    full = keys.runs.model.heads.full_layers
    seconds: dict[str, Callable[[int], Values]] = {
        "unclamped gate": lambda seed: keys.table("teacher", seed),
        "gate averaged over training": lambda seed: keys.gates("teacher", seed).tables["mean_gates"][full],
        "copy score": lambda _: keys.per_kv(keys.runs.heads("copy").values, np.max),
    }
    for name, second in seconds.items():
        count = kept_count(QUARTER, int(np.prod(keys.shape)))
        patterns = [strongest(count, keys.table("teacher", seed).clip(0, 1), second(seed))[0] for seed in keys.seeds]
        told[f"ties by {name}"] = interval(keys.mean_answered(patterns))
    return {"half_precision_ties": (spreads, None)}, {"precision": told}


def _spread(right: Values) -> float:
    """Of values [text, seed, draw]: largest minus smallest mean of a draw, mean over seeds."""
    means = right.mean(axis=0)
    return float((means.max(axis=1) - means.min(axis=1)).mean())


def _ties(keys: PassKeys, gates: Values) -> tuple[dict[str, float], Values]:
    """Facts about equal gates, and [text, draw] pass-keys where chance decides between them."""
    count = kept_count(QUARTER, gates.size)
    noise = [np.random.default_rng([draw, 48]).random(gates.shape) for draw in range(keys.runs.bench.pick(TIE_DRAWS, 4))]
    drawn = [strongest(count, gates, table) for table in noise]
    facts = {"distinct values": len(np.unique(gates)), "exactly 1": float((gates == 1).mean()), "places decided by ties": drawn[0][1]}
    answered = keys.all_answered({draw: [kept] for draw, (kept, _) in enumerate(drawn)})
    return facts, np.stack(list(answered.values()), axis=1)


def _prefills(keys: PassKeys) -> Part:
    """Claim 8: the same heads with the three ways to read a prompt; answers are decoded."""
    found = {(keep, mode): _decoded(keys, keep, mode) for keep in (FEW, QUARTER) for mode in PREFILLS}
    whole, first = ({mode: found[QUARTER, mode][:, part] for mode in PREFILLS} for part in (0, 1))
    steps = smallest([compared(whole["dense"], whole["chunked"]), compared(whole["chunked"], whole["windowed"])])
    test, beside = compared(whole["dense"], whole["windowed"]), compared(first["dense"], first["windowed"])
    told = {f"{mode}, {keep:.1%}": {"answer": interval(rows[:, 0]), "first token": interval(rows[:, 1])} for (keep, mode), rows in found.items()}
    numbers: Numbers = {"dense_above_windowed": test.ends, "least_step": steps.ends, "first_token": beside.ends}
    return {"prefill_order": (numbers, test.p)}, {"prefills": told}


def _decoded(keys: PassKeys, keep: float, mode: str) -> Values:
    """[text, 2] whether the last pass-key, and its first token, is decoded; mean over seeds."""
    cells = keys.runs.cells(f"prefill-{mode}-{round(keep * 1000)}", seen=list(SEEN), chunk=CHUNK)
    found = []
    for seed in keys.seeds:
        method = DuoAttention(keys.gates("teacher", seed), keep, *SEEN, prefill=mode)
        found.append([row["right"] for row in remembered(cells, str(seed), partial(_said, keys, method, mode))])
    return np.asarray(np.mean(found, axis=0))


@torch.no_grad()
def _said(keys: PassKeys, method: DuoAttention, mode: str) -> list[Row]:
    model, rows = keys.runs.model.hf, []
    for ids, asked in zip(keys.block.ids.to(device_of(model)), keys.block.keys, strict=True):
        places = asked[-1]
        wanted = tuple(ids[places[0] + 1 : places[-1] + 2].tolist())
        with compress(model, method) as cache:
            logits = cache.prefill(ids[None, : places[0] + 1], chunk=CHUNK if mode == "chunked" else None)
            said = continuation(model, cache, logits, (), len(wanted))
        rows.append({"right": [float(said == wanted), float(said[0] == wanted[0])]})
    return rows
