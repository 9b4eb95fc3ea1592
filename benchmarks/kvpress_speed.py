"""SnapKV and AdaKV here and in kvpress: prefill with scoring, and decoding after it, on the same random Llama with the same share kept.

kvpress needs an environment of its own (docs/kvpress.md), so one call measures one side: `--side headwise` here, `--side kvpress` there. Take
turns and compare; `ratio_to_plain` is the prefill against a plain prefill of the same side in the same call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, __version__

from tests.helpers import with_cache


def model_of(chosen: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=2 * chosen.length, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def block(chosen: argparse.Namespace, model: Any) -> Any:
    """The open press of one side. Both keep the same share, with the same window and kernel, and no sinks."""
    ratio = 1 - chosen.share
    if chosen.side == "headwise":
        from headwise.methods.adakv.press import AdaKV
        from headwise.methods.snapkv.press import SnapKV

        kind = AdaKV if chosen.method == "adakv" else SnapKV
        return kind(compression_ratio=ratio, window=64, kernel=5, sinks=0)(model)
    from kvpress import AdaKVPress, SnapKVPress

    press = SnapKVPress(compression_ratio=ratio, window_size=64, kernel_size=5)
    return (AdaKVPress(press) if chosen.method == "adakv" else press)(model)


@torch.no_grad()
def once(chosen: argparse.Namespace, model: Any, ids: torch.Tensor) -> dict[str, float]:
    """Seconds of a plain prefill and of one with scoring, seconds per decoded token, and bytes held."""
    started = time.perf_counter()
    model.model(input_ids=ids, **with_cache(DynamicCache(config=model.config)), use_cache=True)
    plain = time.perf_counter() - started
    with block(chosen, model) as kept:
        cache = kept if chosen.side == "headwise" else DynamicCache(config=model.config)
        started = time.perf_counter()
        model(input_ids=ids, **with_cache(cache), use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - started
        held = cache.nbytes if chosen.side == "headwise" else sum(2 * layer.keys.nbytes for layer in cache.layers)
        started = time.perf_counter()
        for i in range(chosen.tokens):
            place = torch.tensor([[ids.shape[1] + i]])
            model(input_ids=ids[:, :1], **with_cache(cache), position_ids=place, use_cache=True)
        decode = (time.perf_counter() - started) / chosen.tokens
    return {"plain": plain, "prefill": prefill, "decode": decode, "bytes": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("headwise", "kvpress"), required=True)
    parser.add_argument(
        "--method", choices=("snapkv", "adakv"), default="snapkv", help="adakv: KV heads of a layer keep different numbers"
    )
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    model = model_of(chosen)
    ids = torch.randint(2, 8192, (1, chosen.length), generator=torch.Generator().manual_seed(1))
    rounds = [once(chosen, model, ids) for _ in range(chosen.repeats + 1)][1:]  # the first warms up
    result = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    result["ratio_to_plain"] = statistics.median(found["prefill"] / found["plain"] for found in rounds)
    print(json.dumps({"side": chosen.side, "transformers": __version__, "torch": torch.__version__, **result, **vars(chosen)}))


if __name__ == "__main__":
    main()
