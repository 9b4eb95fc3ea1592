"""The claims 1-6 and 8 of the ZigzagAttention card (see cache_claims.py, which runs them).

A pass-key counts as right if all of its tokens are the most probable ones behind the true text. Unless said otherwise heads that stream see their
exact window everywhere (`windowed`); keep is the share of KV heads, or of layers, that see everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from cache_claims import PARTS, Lab, Result, over_seeds, share
from scipy.stats import spearmanr

from headwise.attention import ablate
from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.caches.gated import gated, last_hidden, streaming_loss
from headwise.caches.groups import Window
from headwise.caches.kept_cache import compress
from headwise.evaluation.perplexity import text_windows
from headwise.evaluation.reading import continuation
from headwise.heads import HeadScores, HeadSet
from headwise.maths.gates import binarise, gate_loss, kept_count, strongest
from headwise.methods.duo.gates import gate_scores, rate_factor
from headwise.methods.duo.options import Gates
from headwise.methods.duo.press import DuoAttention
from headwise.methods.duo.prompts import LabelledText, VaultOptions, vault_texts
from headwise.methods.zigzag.formula import layer_pattern

SEEN = Window(4, 16)  # what a streaming head sees, while gates are found and in tests
FOUND_AT, TESTED_AT = (220, 280), 280  # tokens of a text
KEYS, WORDS = 2, 4
TEXTS = 40  # for a search
KEEPS = (0.25, 0.5, 0.75)
DRAWS = 10  # random patterns
RATE = 0.04  # peak; twice the paper's, for few steps
ORDER_TEXTS = 2  # for rule Z5
TIE_SEEDS = 20
CHUNK = 64
ROWS = 8  # texts in one pass
Pattern = np.ndarray  # bool [layers, KV heads], True: sees everything


class Block(NamedTuple):
    """Texts of one length. ids [n, T]; keys: per text and pass-key the positions that predict its tokens."""

    ids: torch.Tensor
    keys: list[list[list[int]]]


def texts(lab: Lab, split: str, seed: int, lengths: tuple[int, int], count: int) -> list[LabelledText]:
    part = PARTS["test" if split == "test" else "detect"]
    options = VaultOptions(lengths, KEYS, WORDS, split, part=part, seed=seed)
    return vault_texts(lab.haystack, lab.encoder, options, count)


def block(found: Sequence[LabelledText]) -> Block:
    """Texts of equal length with their pass-keys."""
    keys = []
    for text in found:
        runs: list[list[int]] = []
        for place in text.places:
            if runs and runs[-1][-1] == place - 1:
                runs[-1].append(place)
            else:
                runs.append([place])
        keys.append(runs)
    return Block(torch.tensor([text.ids for text in found]), keys)


class Ruler:
    """Measures patterns on pass-keys of the test words; a pattern is measured once."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.layout = lab, lab.model
        self.block = block(texts(lab, "test", 0, (TESTED_AT, TESTED_AT), lab.items))
        self._known: dict[bytes, np.ndarray] = {}

    @torch.no_grad()
    def keys(self, pattern: Pattern) -> np.ndarray:
        """[text] share of its pass-keys that are right."""
        name = np.ascontiguousarray(pattern).tobytes()
        if name not in self._known:
            model, found = self.lab.model.hf, []
            with gated(model, torch.tensor(pattern, dtype=torch.float32), SEEN):
                for start in range(0, len(self.block.ids), ROWS):
                    ids = self.block.ids[start : start + ROWS]
                    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                    for row, keys in enumerate(self.block.keys[start : start + ROWS]):
                        found.append(np.mean([_right(model, hidden[row], ids[row], places) for places in keys]))
            self._known[name] = np.array(found)
        return self._known[name]

    def mean(self, pattern: Pattern) -> float:
        return float(self.keys(pattern).mean())

    @torch.no_grad()
    def needles(self, pattern: Pattern) -> float:
        """Share of test needles whose whole answer is right, one seed."""
        model, right = self.lab.model.hf, []
        with gated(model, torch.tensor(pattern, dtype=torch.float32), SEEN):
            for prompt, _ in self.lab.prompts("test", 0):
                ids = torch.tensor([[*prompt.ids, *prompt.gold]])
                places = list(range(len(prompt.ids) - 1, ids.shape[1] - 1))
                hidden = last_hidden(model, ids, places)[0]
                right.append(bool((_said(model, hidden) == ids[0, len(prompt.ids) :]).all()))
        return float(np.mean(right))


def _said(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model.get_output_embeddings()(hidden).argmax(dim=-1))


def _right(model: Any, hidden: torch.Tensor, ids: torch.Tensor, places: list[int]) -> float:
    return float((_said(model, hidden[places]) == ids[[place + 1 for place in places]]).all())


# Gates


def gates(lab: Lab, kind: str, seed: int = 0) -> HeadScores:
    """teacher, self: the two mixtures. layer, group: Z3's and Z4's. all tokens, prose: other losses. half: gates and optimiser in bfloat16."""
    given = {"self": {"mix": "self"}, "layer": {"per": "layer"}, "group": {"form": "group"}}.get(kind, {})
    least = 0.0 if kind in ("all tokens", "prose") else 0.5
    options = Gates(steps=lab.steps, rate=RATE, sinks=SEEN.sinks, recent=SEEN.recent, seed=seed, min_right=least, **given)  # type: ignore[arg-type]

    def find() -> HeadScores:
        found = texts(lab, "train", seed, FOUND_AT, TEXTS)
        if kind == "all tokens":
            found = [LabelledText(text.ids, (False, *[True] * (len(text.ids) - 1))) for text in found]
        if kind == "prose":
            rows = text_windows(lab.haystack, TEXTS, FOUND_AT[1] - 30, PARTS["detect"], seed).tolist()
            found = [
                LabelledText((*lab.encoder.bos, *row), (False, *[True] * (len(lab.encoder.bos) + len(row) - 1))) for row in rows
            ]
        return half_gates(lab, found, options) if kind == "half" else gate_scores(lab.model, found, options)

    return lab.kept(f"gates-{kind.replace(' ', '-')}-{seed}", find)


def half_gates(lab: Lab, found: Sequence[LabelledText], options: Gates) -> HeadScores:
    """As DuoAttention's code: gates and AdamW's state in bfloat16. The model and the loss stay float32."""
    model, layout = lab.model.hf, lab.model
    trained = torch.nn.Parameter(torch.ones(layout.heads.shape[0], layout.heads.kv_heads, dtype=torch.bfloat16))
    optimiser = torch.optim.AdamW([trained], lr=options.rate, weight_decay=0.0)
    order = np.random.default_rng([options.seed, 13]).permutation(np.arange(options.steps) % len(found))
    for step, number in enumerate(order):
        with torch.no_grad():
            trained.clamp_(0, 1)
        optimiser.param_groups[0]["lr"] = options.rate * rate_factor(step, options.steps)
        optimiser.zero_grad()
        now = trained.float()
        with gated(model, now, SEEN, "teacher") as gating:
            loss = gate_loss(*reversed(gating.both(torch.tensor([found[number].ids]), found[number].places)), now)
            (loss.distillation + options.penalty * loss.penalty).backward()
        optimiser.step()
    values = trained.detach().double().numpy()
    return HeadScores(np.repeat(values, layout.heads.shape[1] // layout.heads.kv_heads, axis=1), "gate")


def per_kv(lab: Lab, values: np.ndarray, reduce: Callable[..., np.ndarray] = np.mean) -> np.ndarray:
    """[layers, query heads] -> [layers, KV heads]."""
    return reduce(values.reshape(len(values), lab.model.heads.kv_heads, -1), axis=2)


def top(values: np.ndarray, keep: float) -> Pattern:
    return binarise(values, keep).kept


def by_layer(lab: Lab, kept: np.ndarray) -> Pattern:
    return np.repeat(kept[:, None], lab.model.heads.kv_heads, axis=1)


# Claims


def gates_find_copying_heads(lab: Lab) -> Result:
    """Claim 1: rank correlation of gates with scores and damages; pass-keys with the top, bottom and random 25 % of the KV heads."""
    ruler, keep, found = Ruler(lab), 0.25, {}
    tables = [per_kv(lab, gates(lab, "teacher", seed).values) for seed in range(lab.seeds)]
    others = {f"{score} score": per_kv(lab, lab.heads(score).values, np.max) for score in ("copy", "semantic")}
    others |= damages(lab)
    found["spearman"] = {
        name: over_seeds([spearmanr(table.ravel(), other.ravel()).statistic for table in tables])
        for name, other in others.items()
    }
    found["spearman_copy_score_and_ablation"] = float(
        spearmanr(others["copy score"].ravel(), others["ablation"].ravel()).statistic
    )
    between = [spearmanr(tables[i].ravel(), tables[j].ravel()).statistic for i in range(len(tables)) for j in range(i)]
    found["spearman_between_seeds"] = over_seeds(between or [1.0])
    size, rng = tables[0].size, np.random.default_rng(47)
    found["full"] = share(ruler.keys(np.ones_like(tables[0], dtype=bool)))
    found["all_stream"] = share(ruler.keys(np.zeros_like(tables[0], dtype=bool)))
    for name, chosen in (("top", tables), ("bottom", [-table for table in tables])):
        patterns = [strongest(kept_count(keep, size), table)[0] for table in chosen]
        found[f"{name}_25%"] = over_seeds([ruler.mean(pattern) for pattern in patterns])
        found[f"{name}_25%_needles"] = over_seeds([ruler.needles(pattern) for pattern in patterns])
    drawn = [strongest(kept_count(keep, size), rng.random(tables[0].shape))[0] for _ in range(DRAWS)]
    found["random_25%"] = over_seeds([ruler.mean(pattern) for pattern in drawn])
    found["mean_gates_by_layer"] = np.mean(tables, axis=(0, 2)).round(3).tolist()
    return found


@torch.no_grad()
def damages(lab: Lab) -> dict[str, np.ndarray]:
    """[layers, KV heads] loss of log-probability of the pass-keys' tokens without one KV head's query heads, and if it alone streams."""
    model, (layers, heads), kv = lab.model.hf, lab.model.heads.shape, lab.model.heads.kv_heads
    each = heads // kv
    groups = [(layer, head) for layer in range(layers) for head in range(kv)]
    sets = [HeadSet.of([(layer, each * head + i) for i in range(each)], (layers, heads)) for layer, head in groups]
    chosen = texts(lab, "selection", 0, (FOUND_AT[1], FOUND_AT[1]), 4)
    rows, streaming = np.zeros(len(groups)), np.zeros(len(groups))
    for text in chosen:
        ids = torch.tensor([text.ids])
        wanted = ids[0, [place + 1 for place in text.places]]

        def loss(hidden: torch.Tensor, wanted: torch.Tensor = wanted) -> np.ndarray:
            logs = model.get_output_embeddings()(hidden).log_softmax(dim=-1)
            return -logs.gather(2, wanted.expand(len(hidden), -1)[..., None])[..., 0].mean(dim=1).double().numpy()

        whole = loss(last_hidden(model, ids, text.places))[0]
        for start in range(0, len(sets), ROWS):
            own = sets[start : start + ROWS]
            with ablate(model, own):
                rows[start : start + ROWS] += loss(last_hidden(model, ids.expand(len(own), -1), text.places)) - whole
        for i, group in enumerate(groups):
            alone = torch.ones(layers, kv)
            alone[group] = 0
            with gated(model, alone, SEEN):
                streaming[i] += loss(last_hidden(model, ids, text.places))[0] - whole
    return {"ablation": rows.reshape(layers, kv), "streaming alone": streaming.reshape(layers, kv)}


def against_profiling(lab: Lab) -> Result:
    """Claim 2: gates against the attention that heads give to what a window would hide, averaged over all rows or those of the answers."""
    ruler, found = Ruler(lab), {}
    for seed in range(lab.seeds):
        sources = {"gates": per_kv(lab, gates(lab, "teacher", seed).values)}
        for rows in ("all", "answers"):
            sources[f"profile, {rows}"] = mass_outside(lab, texts(lab, "train", seed, FOUND_AT, 10), rows)
        for name, values in sources.items():
            for keep in (0.125, *KEEPS[:2]):
                found.setdefault(f"{name}, {keep}", []).append(ruler.mean(top(values, keep)))
    return {name: over_seeds(values) for name, values in found.items()}


@torch.no_grad()
def mass_outside(lab: Lab, chosen: Sequence[LabelledText], rows: str) -> np.ndarray:
    """[layers, KV heads] mean share of the attention that falls outside of the window."""
    layout = lab.model
    total = np.zeros((layout.heads.shape[0], layout.heads.kv_heads))

    def tap(call: Call, text: LabelledText) -> None:
        keys = call.keys[0].repeat_interleave(call.query.shape[1] // call.keys[0].shape[1], dim=1)
        length = keys.shape[2]
        query, key = torch.arange(length)[:, None], torch.arange(length)
        weights = (call.query @ keys.transpose(2, 3) * call.scaling).masked_fill(key > query, -torch.inf).softmax(dim=-1)
        hidden = (key >= SEEN.sinks) & (query - key >= SEEN.recent)
        asked = slice(None) if rows == "all" else text.places
        outside = (weights * hidden).sum(dim=-1)[0][:, asked].mean(dim=1)
        total[call.layer] += outside.view(layout.heads.kv_heads, -1).mean(dim=1).double().numpy()

    for text in chosen:
        with attached(lab.model.hf) as plan, plan.running(SimpleNamespace(look=partial(tap, text=text))):
            last_hidden(lab.model.hf, torch.tensor([text.ids]), text.places[:1])
    return total / len(chosen)


def against_other_losses(lab: Lab) -> Result:
    """Claim 3: labels of pass-keys against distillation over all tokens of the same texts, and over plain prose."""
    return by_gates(lab, ("teacher", "all tokens", "prose"), KEEPS[:2])


def mixtures(lab: Lab) -> Result:
    """Claim 4: teacher against self: rank correlation of the gates, pass-keys at several shares, by heads and by layers."""
    found = by_gates(lab, ("teacher", "self"), KEEPS[:2])
    ruler = Ruler(lab)
    pairs = [(gates(lab, "teacher", seed).values, gates(lab, "self", seed).values) for seed in range(lab.seeds)]
    found["spearman"] = over_seeds([spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs])
    for keep in KEEPS[:2]:
        for name, place in (("teacher", 0), ("self", 1)):
            layers = [layer_pattern(per_kv(lab, pair[place]), keep).kept for pair in pairs]
            found[f"{name}, whole layers (Z1), {keep}"] = over_seeds([ruler.mean(by_layer(lab, kept)) for kept in layers])
    return found


def by_gates(lab: Lab, kinds: Sequence[str], keeps: Sequence[float]) -> Result:
    """Pass-keys by kind of gates and share kept."""
    ruler, found = Ruler(lab), {}
    for kind in kinds:
        for keep in keeps:
            tables = [per_kv(lab, gates(lab, kind, seed).values) for seed in range(lab.seeds)]
            found[f"{kind}, {keep}"] = over_seeds([ruler.mean(top(table, keep)) for table in tables])
        found[f"{kind}, mean gate"] = over_seeds(
            [float(gates(lab, kind, seed).values.clip(0, 1).mean()) for seed in range(lab.seeds)]
        )
    return found


def precision(lab: Lab) -> Result:
    """Claim 5: float32 against bfloat16 gates: distinct values, share of exactly 1, spread over random decisions between equal gates."""
    ruler, found = Ruler(lab), {}
    for kind in ("teacher", "half"):
        facts: dict[str, list[float]] = {}
        for seed in range(lab.seeds):
            values = per_kv(lab, gates(lab, kind, seed).values).clip(0, 1)
            facts.setdefault("distinct values", []).append(len(np.unique(values)))
            facts.setdefault("share of exactly 1", []).append(float((values == 1).mean()))
            for keep in KEEPS[:1]:
                noise = [np.random.default_rng([draw, 48]).random(values.shape) for draw in range(TIE_SEEDS)]
                drawn = [strongest(kept_count(keep, values.size), values, table) for table in noise]
                right = [ruler.mean(kept) for kept, _ in drawn]
                facts.setdefault(f"places decided by ties at {keep}", []).append(drawn[0][1])
                facts.setdefault(f"right at {keep}, mean over ties", []).append(float(np.mean(right)))
                facts.setdefault(f"right at {keep}, largest - smallest over ties", []).append(max(right) - min(right))
        found |= {f"{kind}: {name}": over_seeds(numbers) for name, numbers in facts.items()}
    decided: dict[str, list[float]] = {}
    for seed in range(lab.seeds):
        scores = gates(lab, "teacher", seed)
        raw, averaged = per_kv(lab, scores.values), scores.tables["mean_gates"]
        orders = {
            "unclamped gate": raw,
            "gate averaged over training": averaged,
            "copy score": per_kv(lab, lab.heads("copy").values, np.max),
        }
        for name, second in orders.items():
            kept, _ = strongest(kept_count(KEEPS[0], raw.size), raw.clip(0, 1), second)
            decided.setdefault(f"teacher: right at {KEEPS[0]}, ties by {name}", []).append(ruler.mean(kept))
    return found | {name: over_seeds(values) for name, values in decided.items()}


def exclusivity(lab: Lab) -> Result:
    """Claim 6: pass-keys and needles by heads and by whole layers, chosen by each rule, beside random layers."""
    ruler, full = Ruler(lab), lab.model.heads.full_layers
    found: dict[str, list[float]] = {}
    layers_of: dict[str, list[list[int]]] = {}
    for seed in range(lab.seeds):
        tables = {kind: per_kv(lab, gates(lab, kind, seed).values)[full] for kind in ("teacher", "layer", "group")}
        rows = [(torch.tensor([text.ids]), text.places) for text in texts(lab, "selection", seed, FOUND_AT, ORDER_TEXTS)]
        loss = remembered_loss(streaming_loss(lab.model.hf, rows, SEEN))
        for keep in KEEPS:
            patterns = {"by heads": top(tables["teacher"], keep)}
            for rule, kind in (("Z1", "teacher"), ("Z2", "teacher"), ("Z3", "layer"), ("Z4", "group"), ("Z5", "teacher")):
                kept = layer_pattern(tables[kind], keep, rule, loss if rule == "Z5" else None).kept
                patterns[rule] = by_layer(lab, kept)
                layers_of.setdefault(f"{rule}, {keep}", []).append(np.flatnonzero(kept).tolist())
            drawn = np.random.default_rng([seed, 49]).permutation(len(full))[: kept_count(keep, len(full))]
            patterns["random layers"] = by_layer(lab, np.isin(np.arange(len(full)), drawn))
            for name, pattern in patterns.items():
                found.setdefault(f"{name}, {keep}", []).append(ruler.mean(pattern))
                if seed == 0:
                    found[f"{name}, {keep}, needles"] = [ruler.needles(pattern)]
    whole = np.ones_like(tables["teacher"], dtype=bool)
    return {name: over_seeds(values) for name, values in found.items()} | {
        "full": share(ruler.keys(whole)), "full, needles": ruler.needles(whole), "layers": layers_of,
    }  # fmt: skip


def remembered_loss(loss: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
    """Every pattern is measured once."""
    known = lru_cache(maxsize=None)(lambda kept: loss(np.array(kept, dtype=bool)))
    return lambda kept: known(tuple(kept.tolist()))


def prefills(lab: Lab) -> Result:
    """Claim 8: the same heads with the three ways to read a prompt; answers are decoded. First: the answer's first token."""
    model, found = lab.model.hf, {}
    test = block(texts(lab, "test", 0, (TESTED_AT, TESTED_AT), lab.items))
    for keep, mode in itertools.product((0.125, 0.25), ("dense", "chunked", "windowed")):
        for seed in range(lab.seeds):
            method = DuoAttention(gates(lab, "teacher", seed), keep, *SEEN, prefill=mode)
            rows = []
            for ids, keys in zip(test.ids, test.keys, strict=True):
                places = keys[-1]
                wanted = tuple(ids[places[0] + 1 : places[-1] + 2].tolist())
                with torch.no_grad(), compress(model, method) as cache:
                    logits = cache.prefill(ids[None, : places[0] + 1], chunk=CHUNK if mode == "chunked" else None)
                    said = continuation(model, cache, logits, (), len(wanted))
                rows.append((said == wanted, said[0] == wanted[0]))
            for name, values in zip(("all", "first"), zip(*rows, strict=True), strict=True):
                found.setdefault(f"{mode}, {keep}, {name}", []).append(float(np.mean(values)))
    return {name: over_seeds(values) for name, values in found.items()}


CLAIMS: dict[str, Callable[[Lab], Result]] = {
    "gates_find_copying_heads": gates_find_copying_heads,
    "prefills": prefills,
    "against_profiling": against_profiling,
    "exclusivity": exclusivity,
    "mixtures": mixtures,
    "precision": precision,
    "against_other_losses": against_other_losses,
}
