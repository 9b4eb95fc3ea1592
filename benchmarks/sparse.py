"""Sparse decoding against full attention, per token: what each chooser costs and saves, the bound, and what has to be moved.

A random Llama of 8 layers, 512 wide, 8 heads and 4 KV heads, or a real model (--model). Caches are filled with random keys and values, so that no
long prompt has to be read. All variants take turns; ratios are medians over rounds of the ratio of one round.

`vs_full_per_token`: time of a step with transformers' DynamicCache over ours; `vs_static_per_token`: the same over a preallocated cache (headwise's
own, whose step is at least as fast as StaticCache's). `bound_vs_...`: what no chooser can pass, the step of `streaming`, which costs nothing to
choose, at this budget; `share_of_bound`: the step of `streaming` over that of a chooser. `chooser_share`: what choosing adds, as a share of the step.
`flat`: time per token at the long length over that at the short one.
`bytes_moved_share`: of what attention reads in these steps, the share that was moved into slots (all of it where it is gathered anew, --placement
device). Random keys: a real text has more in common from step to step.
`moved` (--only moved, a real model): greedy steps behind a real text; share of the budget that is moved to slots per step.
`--gpu`: on a CUDA device, in bfloat16, all of 32,768 and 131,072 positions, batch 1 and 8, and the three placements; one JSON for all of them. It
begins nothing new after --minutes and names what it left out; the host needs about 24 GiB of memory that can be pinned. No GPU has run it yet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import hardware, show
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from headwise.attention.plan import attached
from headwise.attention.sparse import Chooser
from headwise.caches import choosers
from headwise.caches.roomy import roomy_cache
from headwise.caches.sparse_cache import sparse_decode
from headwise.heads import HeadSet
from headwise.heads.headfile import load_heads
from headwise.methods.specontext.chooser import Distilled
from headwise.models.draft_head import DraftHead, shape_for
from headwise.models.forward import forward
from headwise.models.load import load
from headwise.models.model import Model, as_model
from headwise.prompts.haystack import bundled_texts

PARTS = ("speed", "flat", "moved")
# The preset of --gpu, in the order of what it costs. Its choosers have seen enough after two steps.
GPU = {"repeats": 3, "tokens": 8, "warm": 2, "budget": 2048, "choosers": "retrieval_heads,pages"}
GPU_RUNS = [
    (length, batch, place) for length, batch in ((32768, 1), (32768, 8), (131072, 1), (131072, 8)) for place in ("device", "slots", "host")
]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="speed,flat", help="speed, flat, moved")
    parser.add_argument("--length", type=int, default=32768, help="tokens in front of decoding")
    parser.add_argument("--short", type=int, default=8192, help="the shorter length of `flat`")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded per round; for `moved` steps behind the text")
    parser.add_argument("--placement", default="device", help="device, slots or host")
    parser.add_argument("--model", default="", help="a real model in place of the random one: a name such as smollm2, or a folder")
    parser.add_argument("--heads", default="", help="head file of retrieval heads; without one: 8 heads spread over the layers")
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--choosers", default="retrieval_heads,refresh_every,pages,previous_query,anchor_layers,distilled")
    parser.add_argument("--warm", type=int, default=9, help="steps in front of the timed ones; some choosers read everything in the first eight")
    parser.add_argument("--gpu", action="store_true", help="the preset for one large GPU, see above; of the other options, only --minutes counts")
    parser.add_argument("--minutes", type=float, default=8, help="--gpu: begin nothing new after so many")
    given = parser.parse_args()
    if given.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA device; torch sees none")
    if given.gpu:
        vars(given).update(GPU, json=True, model="", heads="", length=max(length for length, _, _ in GPU_RUNS))
    return given


class RandomDraft(Distilled):
    """A draft head with random weights that has read a random text: it costs what a trained one does."""

    def fill(self, batch: int, length: int, device: str) -> None:
        keys = torch.randn((batch, self.head.shape.kv_heads, length, self.head.shape.head_dim), device=device)
        self._layer.update(keys, keys)


class Bench:
    """A model, its choosers, and caches filled with random numbers."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.given = given
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = "bfloat16" if self.device == "cuda" else "auto"
        self.model = load(given.model, self.device, kind) if given.model else Model(self.random_model())
        self.dtype = self.model.hf.dtype
        self.ends = time.perf_counter() + 60 * given.minutes if given.gpu else float("inf")
        self.moved_shares: dict[str, float | None] = {}
        self.peaks: dict[str, int] = {}  # CUDA only: largest number of bytes while steps ran

    @property
    def is_late(self) -> bool:
        """Whether nothing new should begin."""
        return time.perf_counter() > self.ends

    def wait(self) -> None:
        """Until the device has done all that it was given, without which nothing is timed."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def random_model(self) -> Any:
        config = LlamaConfig(
            vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
            max_position_embeddings=2 * self.given.length, attn_implementation="sdpa",
        )  # fmt: skip
        return LlamaForCausalLM(config).to(self.device, torch.bfloat16 if self.device == "cuda" else torch.float32).eval()

    def heads(self) -> HeadSet:
        if self.given.heads:
            return load_heads(self.given.heads).top(self.given.top)
        layers, count = self.model.heads.shape
        spread = [(min(layers - 1, layers // 2 + i // 2), (3 * i) % count) for i in range(min(self.given.top, layers))]
        return HeadSet.of(spread, self.model.heads.shape)

    def chooser(self, name: str) -> Chooser:
        makers: dict[str, Callable[[], Chooser]] = {
            "streaming": choosers.Streaming,
            "random": choosers.Random,
            "retrieval_heads": lambda: choosers.RetrievalHeads(self.heads()),
            "refresh_every": lambda: choosers.RefreshEvery(8),
            "pages": choosers.Pages,
            "previous_query": choosers.PreviousQuery,
            "anchor_layers": lambda: choosers.AnchorLayers(6),
            "oracle": choosers.Oracle,
            "distilled": lambda: RandomDraft(DraftHead(shape_for(self.model, "emb+feat", 2 * self.given.length)).eval().requires_grad_(False)),
        }
        return makers[name]()

    def fill(self, cache: Any, length: int) -> Any:
        grid = as_model(self.model).heads
        shape = (self.given.batch, grid.kv_heads, length, grid.head_dim)
        for layer in grid.full_layers:
            keys, values = (torch.randn(shape, device=self.device, dtype=self.dtype) for _ in range(2))
            cache.update(keys, values, layer)
        return cache

    @torch.no_grad()
    def steps(self, cache: Any, count: int, name: str = "") -> float:
        """Seconds per token."""
        ids = torch.full((self.given.batch, 1), 7, device=self.device)
        self.wait()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        for _ in range(count):
            forward(self.model.hf, ids, cache)
        self.wait()
        if self.device == "cuda" and name:
            self.peaks[name] = torch.cuda.max_memory_allocated()
        return (time.perf_counter() - started) / max(1, count)

    def sparse(self, name: str, length: int) -> float:
        given = self.given
        chooser = self.chooser(name)
        with sparse_decode(self.model, chooser, budget=given.budget, placement=given.placement, check=False) as cache:
            self.fill(cache, length)
            if isinstance(chooser, RandomDraft):
                chooser.fill(given.batch, length, self.device)
            self.steps(cache, given.warm)
            before = moved_and_read(cache.report())
            seconds = self.steps(cache, given.tokens, name)
            moved, read = (now - then for now, then in zip(moved_and_read(cache.report()), before, strict=True))
            self.moved_shares[name] = moved / read if read else None
            return seconds

    def plain(self, length: int) -> float:
        return self.steps(self.fill(DynamicCache(config=self.model.hf.config), length), self.given.tokens, "full")

    def roomy(self, length: int) -> float:
        with attached(self.model):
            return self.steps(self.fill(roomy_cache(self.model.hf.config), length), self.given.tokens, "static")


def moved_and_read(report: dict[str, Any]) -> tuple[float, float]:
    """Bytes so far."""
    moved, read = ((report[name] or 0.0) * report["sparse_steps"] for name in ("bytes_moved_per_step", "bytes_read_per_step"))
    return moved, read


def speed(bench: Bench) -> dict[str, Any]:
    given = bench.given
    names = given.choosers.split(",")
    times: dict[str, list[float]] = {name: [] for name in ("full", "static", "streaming", *names)}
    for turn in range(given.repeats + 1):
        if turn > 1 and bench.is_late:
            break
        for name, own in times.items():
            make = {"full": bench.plain, "static": bench.roomy}.get(name)
            own.append(make(given.length) if make else bench.sparse(name, given.length))
    rounds = {name: own[1:] for name, own in times.items()}  # the first one warms up

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(rounds[above], rounds[below], strict=True))

    found = {}
    for name in names:
        found[name] = {
            "vs_full_per_token": ratio("full", name),
            "vs_static_per_token": ratio("static", name),
            "share_of_bound": ratio("streaming", name),
            "chooser_share": 1 - ratio("streaming", name),
            "ms_per_token": 1000 * statistics.median(rounds[name]),
            "bytes_moved_share": bench.moved_shares[name],
        }
    best = min(found, key=lambda name: found[name]["ms_per_token"])
    return {
        "best": best,
        **{key: found[best][key] for key in ("vs_full_per_token", "vs_static_per_token", "chooser_share")},
        "bound_vs_full": ratio("full", "streaming"),
        "bound_vs_static": ratio("static", "streaming"),
        "ms_full": 1000 * statistics.median(rounds["full"]),
        "ms_static": 1000 * statistics.median(rounds["static"]),
        "choosers": found,
        "rounds": len(rounds["full"]),
        **({"peak_bytes": dict(bench.peaks)} if bench.peaks else {}),
    }


def flat(bench: Bench) -> dict[str, Any]:
    """Time per token at the long length over that at the short one."""
    given, found = bench.given, {}
    for name in ("static", *given.choosers.split(",")):
        make = bench.roomy if name == "static" else lambda length, name=name: bench.sparse(name, length)
        pairs = [(make(given.short), make(given.length)) for _ in range(given.repeats)]
        found[name] = statistics.median(long / short for short, long in pairs)
    return {"flat": found}


@torch.no_grad()
def moved(bench: Bench) -> dict[str, Any]:
    """Greedy steps behind real text: reports of every chooser with slots."""
    given = bench.given
    text = "\n".join(bundled_texts())
    ids = torch.tensor([bench.model.tokenizer(text).input_ids[: given.length]], device=bench.device)
    found = {}
    for name in given.choosers.split(","):
        chooser = bench.chooser(name)
        with sparse_decode(bench.model, chooser, budget=given.budget, placement="slots", check=False) as cache:
            logits = forward(bench.model.hf, ids, cache, logits_to_keep=1).logits
            for _ in range(given.tokens):
                logits = forward(bench.model.hf, logits[:, -1].argmax(dim=-1, keepdim=True), cache).logits
            report = cache.report()
        found[name] = {key: report[key] for key in ("moved_share", "overlap", "overlap_by_chance", "read_share")}
    return {"moved": found, "bytes_moved_share": min(one["moved_share"] for one in found.values())}


def gpu(bench: Bench) -> dict[str, Any]:
    """Every run of the preset that there is time for."""
    runs: list[dict[str, Any]] = []
    left_out = []
    for length, batch, placement in GPU_RUNS:
        about = {"length": length, "batch": batch, "placement": placement}
        if bench.is_late:
            left_out.append(about)
            continue
        vars(bench.given).update(about)
        bench.peaks.clear()
        try:
            found = speed(bench)
            runs.append(about | found | {"bytes_moved_share": found["choosers"][found["best"]]["bytes_moved_share"]})
        except RuntimeError as error:  # memory that is not there, of the device or to be pinned; the other runs still count
            runs.append(about | {"error": str(error).splitlines()[0]})
        if bench.device == "cuda":
            torch.cuda.empty_cache()
    return {"runs": runs, "left_out": left_out, "budget": bench.given.budget, "dtype": str(bench.dtype).removeprefix("torch.")}


def main() -> None:
    given = options()
    bench = Bench(given)
    if given.gpu:
        show({"model": "random", "hardware": hardware(), **gpu(bench)}, as_json=True)
        return
    result: dict[str, Any] = {
        "model": given.model or "random",
        "dtype": str(bench.dtype).removeprefix("torch."),
        "hardware": hardware(),
        **{name: getattr(given, name) for name in ("length", "short", "budget", "batch", "placement")},
    }
    for part in given.only.split(","):
        result |= {"speed": speed, "flat": flat, "moved": moved}[part](bench)
    show(result, given.json)


if __name__ == "__main__":
    main()
