"""Do kvpress and headwise keep the same positions? Two steps, because they want different versions of transformers (docs/kvpress.md):

    python check_kvpress.py ours FILE       where headwise runs: random models, prompts, and what headwise keeps, into FILE
    python check_kvpress.py compare FILE    where kvpress runs: the same weights and prompts; exits with 1 if anything differs

For models with grouped KV heads it compares, for every layer and KV head, the positions kept by
- kvpress's own SnapKVPress and StreamingLLMPress with headwise's SnapKV and StreamingLLM inside `headwise.compress`,
- headwise's presses inside kvpress (`as_kvpress`) with the same presses inside `headwise.compress`,
- kvpress's AdaKVPress around its own SnapKVPress and around ours (positions that it masks).
"""

import sys

import numpy as np
import torch
import transformers
from transformers import DynamicCache, cache_utils

# Missing in transformers 5.2; only recurrent layers need it, and none is here.
if not hasattr(cache_utils, "LinearAttentionCacheLayerMixin"):
    cache_utils.LinearAttentionCacheLayerMixin = type("LinearAttentionCacheLayerMixin", (), {})

from headwise.caches.controls import RandomTokens
from headwise.caches.kept_cache import compress
from headwise.caches.kvpress import QUERIES, as_kvpress
from headwise.heads import HeadScores
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

LENGTH, RATIOS, SEEDS, WINDOW, KERNEL, SINKS = 64, (0.25, 0.5, 0.75), (0, 1, 2), 8, 5, 4
PLAIN = {"mistral": {"sliding_window": None}}  # a sliding window would drop positions before any press does


@torch.no_grad()
def kept_by_kvpress(model, ids, press):
    """[layer][KV head] -> positions. The keys that are left are looked up among those of a full cache: no two are equal."""
    full, cut = DynamicCache(config=model.config), DynamicCache(config=model.config)
    model(input_ids=ids, **with_cache(full), use_cache=True)
    with press(model):
        model(input_ids=ids, **with_cache(cut), use_cache=True)
    found = []
    for whole, left in zip(full.layers, cut.layers, strict=True):
        same = (left.keys[0][:, :, None] == whole.keys[0][:, None]).all(dim=-1)  # [KV heads, kept, S]
        if not (same.sum(dim=-1) == 1).all():
            sys.exit("a kept key is not exactly one of the full cache")
        found.append([sorted(row.nonzero()[:, 1].tolist()) for row in same])
    return found


@torch.no_grad()
def kept_by_headwise(model, ids, press):
    """[layer][KV head] -> positions."""
    with compress(model, press) as cache:
        model(input_ids=ids, **with_cache(cache), use_cache=True)
        return [[own.tolist() for own in heads] for heads in cache.held_positions().values()]


def masked_by_adakv(model, ids, press):
    """[layer] -> masked (row, KV head, position)."""
    from kvpress import AdaKVPress

    with torch.no_grad(), AdaKVPress(press)(model):
        model(input_ids=ids, **with_cache(DynamicCache(config=model.config)), use_cache=True)
    modules = [layer.self_attn for layer in model.model.layers]
    found = [sorted(zip(*(index.tolist() for index in module.masked_key_indices), strict=True)) for module in modules]
    for module in modules:
        module.masked_key_indices = None  # kvpress leaves it there
    if not all(found):
        sys.exit("AdaKVPress masked nothing in some layer")
    return found


def presses(shape, ratio, seed):
    """Ours, by name. Random head scores [layers, heads] for CompressKV."""
    scores = HeadScores(np.random.default_rng(seed).random(shape), "random")
    common = {"compression_ratio": ratio, "window": WINDOW}
    return {
        "SnapKV": SnapKV(**common, sinks=0, kernel=KERNEL),
        "SnapKV with sinks, 3 queries": SnapKV(**common, sinks=SINKS, queries=3),
        "StreamingLLM": StreamingLLM(**common, sinks=SINKS),
        "RandomTokens": RandomTokens(**common, seed=seed),
        "CompressKV": CompressKV(scores, **common),
        "CompressKV by group": CompressKV(scores, **common, sharing="group", per_layer=2),
    }


def ours(path):
    """Write models, prompts and what headwise keeps."""
    cases = []
    for family in QUERIES:
        for seed in SEEDS:
            model = tiny_model(family, seed=seed, **PLAIN.get(family, {}))
            shape = model.config.num_hidden_layers, model.config.num_attention_heads
            ids = torch.randint(2, 96, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
            kept = {
                ratio: {name: kept_by_headwise(model, ids, press) for name, press in presses(shape, ratio, seed).items()}
                for ratio in RATIOS
            }
            cases.append({"family": family, "seed": seed, "weights": model.state_dict(), "ids": ids, "kept": kept})
    torch.save({"transformers": transformers.__version__, "cases": cases}, path)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: {len(cases)} models written")


def pairs(model, ids, ratio, seed, kept):
    """(what, kvpress's answer, headwise's answer)."""
    from kvpress import SnapKVPress, StreamingLLMPress

    snap = SnapKVPress(compression_ratio=ratio, window_size=WINDOW, kernel_size=KERNEL)
    stream = StreamingLLMPress(compression_ratio=ratio, n_sink=SINKS)
    yield "SnapKVPress = SnapKV", kept_by_kvpress(model, ids, snap), kept["SnapKV"]
    yield "StreamingLLMPress = StreamingLLM", kept_by_kvpress(model, ids, stream), kept["StreamingLLM"]
    mine = presses((model.config.num_hidden_layers, model.config.num_attention_heads), ratio, seed)
    for name, press in mine.items():
        yield f"as_kvpress({name}) = {name}", kept_by_kvpress(model, ids, as_kvpress(press)), kept[name]
    masked = masked_by_adakv(model, ids, snap), masked_by_adakv(model, ids, as_kvpress(mine["SnapKV"]))
    yield "AdaKVPress(SnapKVPress) = AdaKVPress(as_kvpress(SnapKV))", *masked


def compare(path):
    """Print how often both keep the same, and stop with 1 at any difference."""
    stored = torch.load(path)
    equal, different, distinct, runs = {}, [], 0, 0
    for case in stored["cases"]:
        family, seed = case["family"], case["seed"]
        model = tiny_model(family, seed=seed, **PLAIN.get(family, {}))
        model.load_state_dict(case["weights"])
        for ratio, kept in case["kept"].items():
            runs += 1
            for what, theirs, mine in pairs(model, case["ids"], ratio, seed, kept):
                equal[what] = equal.get(what, 0) + (theirs == mine)
                if theirs != mine:
                    different.append(f"{family}, seed {seed}, ratio {ratio}: {what}\n  {theirs}\n  {mine}")
            if {len(own) for layer in kept["SnapKV"] for own in layer} != {int(LENGTH * (1 - ratio))}:
                sys.exit("headwise did not compress")
            distinct += sum(layer[0] != layer[1] for layer in kept["SnapKV"])
    print(f"headwise on transformers {stored['transformers']}, kvpress on {transformers.__version__}; {', '.join(QUERIES)}")
    for what, count in equal.items():
        print(f"{count:4} of {runs} equal   {what}")
    print(f"layers whose two KV heads keep different positions (SnapKV): {distinct} of {runs * 4}")
    if distinct < runs * 3:
        sys.exit("KV heads keep the same positions, so a wrong grouping of heads would not be seen")
    if different:
        sys.exit("\n".join(different[:5]))


if __name__ == "__main__":
    steps = {"ours": ours, "compare": compare}
    if len(sys.argv) != 3 or sys.argv[1] not in steps:
        sys.exit(__doc__)
    steps[sys.argv[1]](sys.argv[2])
