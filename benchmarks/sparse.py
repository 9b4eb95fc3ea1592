"""Sparse decoding against full attention, per token: what each chooser costs and saves, and the bound.

A random Llama of 8 layers, 512 wide, 8 heads and 4 KV heads, or a real model (--model). Caches are filled with random keys and values, so that no
long prompt has to be read. All variants take turns; ratios are medians over rounds of the ratio of one round. What is claimed about speed is measured
by `headwise claims run --experiment sparse-speed` with the same steps; this script is for other lengths, batches, placements and devices.

`vs_full_per_token`: time of a step with transformers' DynamicCache over ours; `vs_static_per_token`: the same over a preallocated cache (headwise's
own, whose step is at least as fast as StaticCache's). `bound_vs_...`: what no chooser can pass, the step of `streaming`, which costs nothing to
choose, at this budget; `share_of_bound`: the step of `streaming` over that of a chooser. `chooser_share`: what choosing adds, as a share of the step.
`flat`: time per token at the long length over that at the short one.
`bytes_moved_share`: of what attention reads in these steps, the share that was moved into slots (all of it where it is gathered anew, --placement
device). Random keys: a real text has more in common from step to step.
`--gpu`: on a CUDA device, in bfloat16, all of 32,768 and 131,072 positions, batch 1 and 8, and the three placements; one JSON for all of them. It
begins nothing new after --minutes and names what it left out; the host needs about 24 GiB of memory that can be pinned. No GPU has run it yet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import hardware, show

from headwise.claims.specontext.speed import (
    BOUND,
    CHOOSERS,
    FULL,
    PREALLOCATED,
    TOKENS,
    WARM,
    Steps,
    fastest,
    random_model,
    ratio,
)
from headwise.heads.headfile import load_heads
from headwise.models.load import load

PARTS = ("speed", "flat")
# The preset of --gpu, in the order of what it costs. Its choosers have seen enough after two steps.
GPU = {"repeats": 3, "tokens": 8, "warm": 2, "budget": 2048, "choosers": "retrieval_heads,pages"}
GPU_RUNS = [
    (length, batch, place) for length, batch in ((32768, 1), (32768, 8), (131072, 1), (131072, 8)) for place in ("device", "slots", "host")
]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS), help="speed, flat")
    parser.add_argument("--length", type=int, default=32768, help="tokens in front of decoding")
    parser.add_argument("--short", type=int, default=8192, help="the shorter length of `flat`")
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens decoded per round")
    parser.add_argument("--placement", default="device", help="device, slots or host")
    parser.add_argument("--model", default="", help="a real model in place of the random one: a name such as smollm2, or a folder")
    parser.add_argument("--heads", default="", help="head file of retrieval heads; without one: 8 heads spread over the layers")
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--choosers", default=",".join(CHOOSERS))
    parser.add_argument("--warm", type=int, default=WARM, help="steps in front of the timed ones; some choosers read everything in the first eight")
    parser.add_argument("--gpu", action="store_true", help="the preset for one large GPU, see above; of the other options, only --minutes counts")
    parser.add_argument("--minutes", type=float, default=8, help="--gpu: begin nothing new after so many")
    given = parser.parse_args()
    if given.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA device; torch sees none")
    if given.gpu:
        vars(given).update(GPU, json=True, model="", heads="", length=max(length for length, _, _ in GPU_RUNS))
    return given


class Bench:
    """Variants of a step, timed, with what they move and the memory that they take."""

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.given = given
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        kind = "bfloat16" if self.device == "cuda" else "auto"
        self.model = load(given.model, self.device, kind) if given.model else random_model(given.length, self.device, dtype)
        self.dtype = self.model.hf.dtype
        self.ends = time.perf_counter() + 60 * given.minutes if given.gpu else float("inf")
        self.moved_shares: dict[str, float | None] = {}
        self.peaks: dict[str, int] = {}  # CUDA only: largest number of bytes while steps ran

    @property
    def is_late(self) -> bool:
        """Whether nothing new should begin."""
        return time.perf_counter() > self.ends

    def timed(self, name: str, length: int) -> float:
        """Seconds per token of a variant."""
        given = self.given
        heads = load_heads(given.heads).top(given.top) if given.heads else None
        steps = Steps(self.model, given.budget, heads, given.batch, given.placement, given.warm, given.tokens)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if name in (FULL, PREALLOCATED):
            seconds = steps.timed(name, length)
        else:
            with steps.sparse(name, length) as cache:
                before = moved_and_read(cache.report())
                seconds = steps.seconds(cache, given.tokens)
                moved, read = (now - then for now, then in zip(moved_and_read(cache.report()), before, strict=True))
                self.moved_shares[name] = moved / read if read else None
        if self.device == "cuda":
            self.peaks[name] = torch.cuda.max_memory_allocated()
        return seconds


def moved_and_read(report: dict[str, Any]) -> tuple[float, float]:
    """Bytes so far."""
    moved, read = ((report[name] or 0.0) * report["sparse_steps"] for name in ("bytes_moved_per_step", "bytes_read_per_step"))
    return moved, read


def speed(bench: Bench) -> dict[str, Any]:
    given = bench.given
    names = given.choosers.split(",")
    times: dict[str, list[float]] = {name: [] for name in (FULL, PREALLOCATED, BOUND, *names)}
    for turn in range(given.repeats + 1):
        if turn > 1 and bench.is_late:
            break
        for name, own in times.items():
            own.append(bench.timed(name, given.length))
    rounds = {name: own[1:] for name, own in times.items()}  # the first one warms up
    found = {}
    for name in names:
        found[name] = {
            "vs_full_per_token": ratio(rounds[FULL], rounds[name]),
            "vs_static_per_token": ratio(rounds[PREALLOCATED], rounds[name]),
            "share_of_bound": ratio(rounds[BOUND], rounds[name]),
            "chooser_share": 1 - ratio(rounds[BOUND], rounds[name]),
            "ms_per_token": 1000 * statistics.median(rounds[name]),
            "bytes_moved_share": bench.moved_shares[name],
        }
    best = fastest(rounds)
    return {
        "best": best,
        **{key: found[best][key] for key in ("vs_full_per_token", "vs_static_per_token", "chooser_share")},
        "bound_vs_full": ratio(rounds[FULL], rounds[BOUND]),
        "bound_vs_static": ratio(rounds[PREALLOCATED], rounds[BOUND]),
        "ms_full": 1000 * statistics.median(rounds[FULL]),
        "ms_static": 1000 * statistics.median(rounds[PREALLOCATED]),
        "choosers": found,
        "rounds": len(rounds[FULL]),
        **({"peak_bytes": dict(bench.peaks)} if bench.peaks else {}),
    }


def flat(bench: Bench) -> dict[str, Any]:
    """Time per token at the long length over that at the short one."""
    given, found = bench.given, {}
    for name in (PREALLOCATED, *given.choosers.split(",")):
        pairs = [(bench.timed(name, given.short), bench.timed(name, given.length)) for _ in range(given.repeats)]
        found[name] = statistics.median(long / short for short, long in pairs)
    return {"flat": found}


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
        result |= {"speed": speed, "flat": flat}[part](bench)
    show(result, given.json)


if __name__ == "__main__":
    main()
