"""The CompressKV card's claims 1-6 (see cache_claims.py, which runs them), and recall against bytes on needles for all methods.

Survival: share of the answer's tokens that are held after the prefill, mean over layers and KV heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cache_claims import Lab, Result, over_seeds, share
from scipy.stats import spearmanr
from torch import Tensor

from headwise.attention.plan import attached
from headwise.caches.allocation import Adaptive, ByHead, ByLayer, Pyramid
from headwise.caches.controls import Full, Oracle, RandomTokens
from headwise.caches.kept_layer import View
from headwise.evaluation.ablation import ablation_curve
from headwise.evaluation.compression import Candidate, survival_of
from headwise.evaluation.perplexity import text_windows
from headwise.evaluation.reading import Reading, size_of
from headwise.heads import HeadScores, HeadSet
from headwise.methods.adakv.press import AdaKV
from headwise.methods.compresskv.layer_errors import LayerErrors, layer_errors
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.headkv.press import HeadKV
from headwise.methods.pyramidkv.press import PyramidKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.prompts.prompt import Prompt
from headwise.stats.agreement import top_overlap
from tests.helpers import with_cache

FEW = 2  # heads per layer that choose, of 8 (the paper: 4 of 32)
DRAWS = 3  # sets of random heads, profiles in random order
SHARES = (0.05, 0.1, 0.2)  # of the prompt, for claims 4 to 6
BUDGETS = (0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
TOP = (2, 4, 8)
CONTROLS = 5
MEAN_TEXT = (4, 256)  # windows and tokens of the text that gives mean outputs


def zero_scores(lab: Lab) -> Result:
    """Claim 1: the copy score is zero for many heads, the semantic score for none; lifts; rank correlation of the two."""
    rows = []
    for seed in range(lab.seeds):
        copy, semantic = lab.heads("copy", seed), lab.heads("semantic", seed)
        lift = semantic.tables["lift"]
        rows.append(
            {
                "copy_zero": float((copy.values == 0).mean()),
                "semantic_zero": float((semantic.values == 0).mean()),
                "lift_above_3": float((lift > 3).mean()),
                "copy_above_0.1": float((copy.values > 0.1).mean()),
                "layers_with_fewer_than_4_nonzero_copy_heads": float(((copy.values > 0).sum(axis=1) < 4).sum()),
                "spearman": float(spearmanr(copy.values.ravel(), semantic.values.ravel()).statistic),
                "shared_of_top_8": 8 * top_overlap(copy.values, semantic.values, 8),
                "top_4_per_layer_shared": agreement(copy.values, semantic.values, 4),
                "solved": float(semantic.provenance["solved"]),
            }
        )
    strongest = lab.heads("semantic").ranking()[:8]
    return {name: over_seeds([row[name] for row in rows]) for name in rows[0]} | {"strongest": [str(head) for head in strongest]}


def depth_contamination(lab: Lab) -> Result:
    """Claim 2: rankings from depth 0 or 1 alone against the one from the depths between, beside rankings from as few other runs."""
    found: dict[str, list[float]] = {}
    for seed in range(lab.seeds):
        scores, rng = lab.heads("semantic", seed), np.random.default_rng([seed, 43])
        depths = np.array([info["depth"] for info in scores.run_info])
        runs = np.asarray(scores.runs)
        middle = (depths > 0) & (depths < 1)
        for k in (FEW, 4):
            for name, own in (("depth_0", depths == 0), ("depth_1", depths == 1)):
                found.setdefault(f"{name}_top_{k}", []).append(agreement(mean(runs[own]), mean(runs[middle]), k))
            few, places = int((depths == 0).sum()), np.flatnonzero(middle)
            for _ in range(DRAWS):
                order = rng.permutation(places)
                one, rest = mean(runs[order[:few]]), mean(runs[order[few:]])
                found.setdefault(f"as_few_from_the_middle_top_{k}", []).append(agreement(one, rest, k))
            found.setdefault(f"all_depths_top_{k}", []).append(agreement(mean(runs), mean(runs[middle]), k))
    chance = {f"chance_top_{k}": k / runs.shape[2] for k in (FEW, 4)}
    return {name: over_seeds(values) for name, values in found.items()} | chance


def causal(lab: Lab) -> Result:
    """Claim 3: exact answers without the top heads by either score, without as many random ones of the same layers, in three modes."""
    found: Result = {}
    scores = {name: lab.heads(name) for name in ("semantic", "copy")}
    task = lab.task("test", (0.3, 0.7), 0).first_needles(lab.items)
    means = text_windows(lab.haystack, *MEAN_TEXT, (0.0, 0.6))
    for mode in ("zero", "uniform", "mean"):
        for name, these in scores.items():
            given = {"mode": mode, "controls": CONTROLS, "task": task, "texts": (means, means), "perplexity": False}
            rows = ablation_curve(lab.model, these, TOP, **given).summary()
            for row in rows:
                if row["metric"] == "exact":
                    key = f"{mode} {row['kind']} {row['k']} " + ("" if row["kind"] == "none" else name)
                    found[key.strip()] = {part: row[part] for part in ("mean", "low", "high", "sd_draws") if part in row}
    found["shared_heads"] = {k: len(set(scores["copy"].top(k)) & set(scores["semantic"].top(k))) for k in TOP}
    found["lowest_layer_of_top_8"] = {name: min(head.layer for head in these.top(8)) for name, these in scores.items()}
    return found


@dataclass(frozen=True, kw_only=True)
class Misgrouped(SnapKV):
    """SnapKV as in CompressKV's released baseline: KV head j is chosen for by query heads j, j + G, j + 2 G, ..."""

    def scores(self, view: View) -> Tensor:
        """[B, KV heads, S]."""
        each, groups = self.head_scores(view, None), view.model.heads.kv_heads
        return each.view(each.shape[0], -1, groups, each.shape[-1]).mean(dim=1)


def selectors(lab: Lab) -> dict[str, Callable[..., Any]]:
    """Name -> maker of a press from its size."""
    semantic, copy, shape = lab.heads("semantic"), lab.heads("copy"), lab.model.heads.shape
    every = HeadSet.of([(i, j) for i in range(shape[0]) for j in range(shape[1])], shape)
    found: dict[str, Callable[..., Any]] = {
        f"semantic {FEW}": lambda **size: CompressKV(semantic, per_layer=FEW, **size),
        "semantic 4": lambda **size: CompressKV(semantic, **size),
        "semantic 4, per group": lambda **size: CompressKV(semantic, sharing="group", **size),
        f"copy {FEW}": lambda **size: CompressKV(random_ties(copy), per_layer=FEW, **size),
        "all heads": lambda **size: CompressKV(every, **size),
        "snapkv": lambda **size: SnapKV(**size),
        "snapkv, wrong groups": lambda **size: Misgrouped(**size),
        f"semantic {FEW}, by layer errors": lambda **size: CompressKV(semantic, per_layer=FEW, layer_errors=profile(lab), **size),
    }
    for draw in range(DRAWS):
        heads = random_heads(shape, FEW, draw)
        found[f"random {FEW}/{draw}"] = lambda heads=heads, **size: CompressKV(heads, **size)
        found[f"random tokens/{draw}"] = lambda draw=draw, **size: RandomTokens(seed=draw, **size)
    return found


def needle_survival(lab: Lab) -> Result:
    """Claims 4 and 6: survival and exact answers by what chooses the tokens, with the question inside and outside of what is compressed."""
    makers = selectors(lab)
    candidates = [Candidate("full", None, Full())]
    candidates += [Candidate(name, size, make(compression_ratio=1 - size)) for name, make in makers.items() for size in SHARES]
    return table(lab, "selection", candidates)


def recall_grid(lab: Lab) -> Result:
    """Exact answers against bytes: every method at budgets from 3 to 50 %, question inside and outside."""
    semantic = lab.heads("semantic")
    makers: dict[str, Callable[..., Any]] = {
        "streamingllm": lambda **size: StreamingLLM(**size),
        "pyramidkv": lambda **size: PyramidKV(**size),
        "adakv": lambda **size: AdaKV(**size),
        "headkv": lambda **size: HeadKV(heads=semantic, **size),
        "compresskv": lambda **size: CompressKV(semantic, per_layer=FEW, layer_errors=profile(lab), **size),
        "snapkv": lambda **size: SnapKV(**size),
        "random": lambda **size: RandomTokens(**size),
    }
    candidates = [Candidate("full", None, Full())]
    for size in BUDGETS:
        candidates += [Candidate(name, size, make(compression_ratio=1 - size)) for name, make in makers.items()]
        candidates.append(Candidate("oracle", size, lambda prompt, size=size: oracle(prompt, size)))
    return table(lab, "recall", candidates)


def allocations(lab: Lab) -> Result:
    """Every allocation over one scorer (semantic heads): which way to share out a budget helps."""
    semantic, found = lab.heads("semantic"), [Candidate("full", None, Full())]
    kinds = {"uniform": {}, "by layer errors": {"layer_errors": profile(lab)}}
    kinds |= {"pyramid": {"allocation": Pyramid()}, "by head scores": {"allocation": ByHead(semantic)}}
    kinds |= {"adaptive": {"allocation": Adaptive(), "sharing": "group"}}
    kinds |= {f"layer errors in random order/{draw}": {"layer_errors": shuffled(profile(lab), draw)} for draw in range(DRAWS)}
    for name, given in kinds.items():
        found += [
            Candidate(name, size, CompressKV(semantic, per_layer=FEW, compression_ratio=1 - size, **given)) for size in SHARES
        ]
    return table(lab, "allocations", found, ("inside",))


def layer_budgets(lab: Lab) -> Result:
    """Claim 5: errors fall with the budget; budgets by errors against even ones at equal total; profiles of two disjoint sets of prompts."""
    press = CompressKV(lab.heads("semantic"), per_layer=FEW, budget=32)
    halves = [measured(lab, press, "detect", seed, (32,)).profile() for seed in (7, 8)]
    layout, errors = lab.model, profile(lab)
    result: Result = {"profile": [round(share_, 4) for share_ in errors]}
    result["correlation_of_two_prompt_sets"] = round(float(np.corrcoef(halves)[0, 1]), 4)
    falls = (16, 24, 32, 48, 64, 96, 128, 256)
    test = measured(lab, press, "test", 0, falls)
    sums = test.values.sum(axis=2)  # [budget, prompt]
    result["error_by_budget"] = {budget: round(float(row.mean()), 4) for budget, row in zip(falls, sums, strict=True)}
    result["prompts_whose_error_falls_each_time"] = float((np.diff(sums, axis=0) < 0).all(axis=0).mean())
    for mean_budget in (48, 96):
        rules = {"by errors": ByLayer(errors), "by errors, no floor": ByLayer(errors, least=0), "pyramid": Pyramid()}
        rules |= {f"random order/{draw}": ByLayer(shuffled(errors, draw)) for draw in range(DRAWS)}
        given = {
            name: [rule.counts(i, None, mean_budget, press.least + 1, lab.length, layout)[0] for i in layout.heads.full_layers]  # type: ignore[arg-type]
            for name, rule in rules.items()
        }
        budgets = sorted({mean_budget, *(count for counts in given.values() for count in counts)})
        found = measured(lab, press, "test", 0, tuple(budgets))
        even = found.values[budgets.index(mean_budget)].sum(axis=1)
        for name, counts in given.items():
            own = sum(found.values[budgets.index(count), :, layer] for layer, count in enumerate(counts))
            result[f"budget {mean_budget}, {name}: change of the summed error"] = share(own / even - 1)
        result[f"budget {mean_budget}, counts by errors"] = given["by errors"]
    return result


# Shared


def agreement(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Mean over layers of the share of the k best heads that both tables name."""
    return float(np.mean([top_overlap(one, other, k) for one, other in zip(a, b, strict=True)]))


def mean(runs: np.ndarray) -> np.ndarray:
    """Over runs."""
    return np.asarray(runs.mean(axis=0))


def random_heads(shape: tuple[int, int], count: int, draw: int) -> HeadSet:
    """`count` random heads of every layer."""
    rng = np.random.default_rng([draw, 44])
    return HeadSet.of([(i, int(j)) for i in range(shape[0]) for j in rng.permutation(shape[1])[:count]], shape)


def random_ties(scores: HeadScores) -> HeadScores:
    """Layers whose copy scores are all zero have no best heads: chance decides there."""
    noise = np.random.default_rng(45).random(scores.shape) * 1e-9
    return HeadScores(scores.values + noise, scores.score, scores.score_version)


def shuffled(errors: Sequence[float], draw: int) -> tuple[float, ...]:
    """The same shares in a random order of layers."""
    return tuple(np.random.default_rng([draw, 46]).permutation(errors).tolist())


def profile(lab: Lab) -> tuple[float, ...]:
    """Shares of the layers in the errors at a budget of 32, from prompts for detection."""
    press = CompressKV(lab.heads("semantic"), per_layer=FEW, budget=32)
    found = lab.remembered("profile", lambda: {"shares": measured(lab, press, "detect", 9, (32,)).profile()})
    return tuple(found["shares"])


def measured(lab: Lab, press: CompressKV, split: str, seed: int, budgets: tuple[int, ...]) -> LayerErrors:
    """Layer errors over the gold answers of as many prompts as there are items."""
    prompts = [prompt for prompt, _ in lab.prompts(split, seed)]
    return layer_errors(lab.model, press, [p.ids for p in prompts], [p.gold for p in prompts], budgets)


def oracle(prompt: Prompt, size: float) -> Oracle:
    """What keeps the answer, and the full stop behind it."""
    positions = tuple(i for span in prompt.spans.values() for i in range(span.start, span.stop + 1))
    return Oracle(positions=positions, compression_ratio=1 - size)


def table(lab: Lab, name: str, candidates: Sequence[Candidate], places: tuple[str, ...] = ("inside", "outside")) -> Result:
    """Place of the question, method, budget -> exact answers and survival: mean, smallest and largest over seeds of the contexts."""
    runs = []
    for seed in range(lab.seeds):
        cell = lab.remembered(f"{name}-{seed}", lambda seed=seed: measure(lab, candidates, seed, places))
        runs.append(cell["rows"])
    found: dict[str, dict[str, list[Any]]] = {}
    for row in (row for rows in runs for row in rows):
        own = found.setdefault(f"{row['question']}, {row['method'].split('/')[0]}, {row['budget']}", {})
        for part in ("exact", "answer", "survival", "held", "by_layer"):
            own.setdefault(part, []).append(row[part])
    result: Result = {}
    for key, own in found.items():
        layers = np.mean(own.pop("by_layer"), axis=0).round(3).tolist()
        result[key] = {part: over_seeds(values) for part, values in own.items()} | {"survival_by_layer": layers}
    return result


@torch.no_grad()
def measure(lab: Lab, candidates: Sequence[Candidate], seed: int, places: tuple[str, ...]) -> Result:
    """Per place of the question and candidate: means over one draw of contexts.

    Tokens are right if they are the most probable ones behind the true text: one pass in place of decoding. exact: those of the whole line, its
    full stop included, which the model copies as well; answer: those of the answer alone.
    """
    model, found = lab.model.hf, {}
    for prompt, _ in lab.prompts("test", seed):
        stop, span = prompt.span("context").stop, prompt.span("answer")
        for place in places:
            read, rest = (prompt.ids, ()) if place == "inside" else (prompt.ids[:stop], prompt.ids[stop:])
            with attached(model):
                reading = Reading(lab.model, read)
                for candidate in candidates:
                    cache, logits = reading.compressed(candidate.for_prompt(Prompt(read, {"answer/1": span})))
                    size, held = size_of(cache), list(cache.held_positions().values())
                    behind = model(input_ids=torch.tensor([[*rest, *prompt.gold[:-1]]]), **with_cache(cache)).logits[0]
                    said = torch.cat([logits, behind]).argmax(dim=-1)[-len(prompt.gold) :].tolist()
                    own = found.setdefault(
                        (place, candidate.name, candidate.budget),
                        {"exact": [], "answer": [], "survival": [], "held": [], "by_layer": []},
                    )
                    own["exact"].append(float(said == list(prompt.gold)))
                    own["answer"].append(float(said[: span.length] == list(prompt.gold[: span.length])))
                    survival = survival_of(held, (span,))
                    own["survival"].append(float(np.mean(survival)))
                    own["by_layer"].append(survival.mean(axis=1).tolist())
                    own["held"].append(size.nbytes / size.full)
    rows = []
    for (place, method, budget), own in found.items():
        means = {name: np.mean(values, axis=0).tolist() for name, values in own.items()}
        rows.append({"question": place, "method": method, "budget": budget} | means)
    return {"rows": rows}


CLAIMS: dict[str, Callable[[Lab], Result]] = {
    "zero_scores": zero_scores,
    "depth_contamination": depth_contamination,
    "layer_budgets": layer_budgets,
    "needle_survival": needle_survival,
    "causal": causal,
    "allocations": allocations,
    "recall_grid": recall_grid,
}
