"""What training with heads and its decoder cost beside the plain thing.

`contrast_per_token`: seconds per token of contrastive generation over those of plain greedy generation behind the same prompt; the larger one of
`heads` (DeCoRe: heads taken away from the last prompt token on) and `prompts` (another control token in front: nothing is shared). All of them take
turns in one run; medians. The prompt is read before the clock starts. Plain is transformers' own pass and cache; `plain_roomy` is the same with a
cache that has room to grow, the fastest plain decoding here.

`mudaf_step_vs_sft`: time of a step with MuDAF's loss (in context, per head) beside the answer's over that of a plain fine-tuning step, on one example
of that length with ten passages, LoRA on all projections of attention; `separate` and `lse` beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from common import hardware, show
from transformers import DynamicCache

from headwise.caches.roomy import roomy_cache
from headwise.heads import HeadSet
from headwise.maths.contrast import Contrast
from headwise.methods.mudaf.loss import MudafLoss
from headwise.models.forward import forward, token_tensor
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.haystack import bundled_texts
from headwise.prompts.prompt import Span
from headwise.runtime.branches import Without, opened
from headwise.train.examples import TrainExample, collate
from headwise.train.head_loss import HeadLoss
from headwise.train.lora import with_lora
from headwise.train.objectives import AnswerLoss, Objective
from headwise.train.options import Tuning

Step = Callable[[int | None], int]
PASSAGES, ASKS, ANSWER = 10, 24, 8  # of the example that is trained on: passages, tokens of the question, tokens of the answer


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default=",".join(PARTS), help="names of parts, separated by commas: " + ", ".join(PARTS))
    parser.add_argument("--model", default="smollm2", help="a name such as lab-6m, or a folder")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens per round")
    parser.add_argument("--repeats", type=int, default=7, help="rounds behind one that warms up")
    parser.add_argument("--top", type=int, default=8, help="heads that are taken away")
    given = parser.parse_args()
    if unknown := set(given.only.split(",")) - set(PARTS):
        parser.error(f"unknown part {min(unknown)}; use {', '.join(PARTS)}")
    return given


def some_heads(model: Model, count: int) -> HeadSet:
    """Heads spread over the upper half of the layers, where retrieval heads are."""
    layers, heads = list(model.modules), model.heads.shape[1]
    upper = layers[len(layers) // 2 :]
    return HeadSet.of([(upper[i % len(upper)], 3 * (i // len(upper)) % heads) for i in range(count)], model.heads.shape)


def plain_step(model: Model, ids: tuple[int, ...], cache: Any) -> Step:
    """Greedy decoding, behind a prompt that has been read but for its last token."""
    forward(model.hf, token_tensor(model.hf, ids[:-1]), cache, logits_to_keep=1)

    def step(token: int | None) -> int:
        newest = token_tensor(model.hf, (ids[-1] if token is None else token,))
        return int(forward(model.hf, newest, cache, logits_to_keep=1).logits[0, -1].argmax())

    return step


def contrast_step(advance: Callable[[int | None], torch.Tensor], rule: Contrast) -> Step:
    """The same with both branches, as `contrastive_generate` does it."""
    return lambda token: int(rule.scores(*advance(token))[0].argmax())


def timed(step: Step, token: int | None, count: int) -> tuple[float, int | None]:
    """Seconds per token, and the last one."""
    started = time.perf_counter()
    for _ in range(count):
        token = step(token)
    return (time.perf_counter() - started) / count, token


@torch.no_grad()
def contrast(model: Model, given: argparse.Namespace) -> dict[str, Any]:
    """Time per token of contrastive decoding. Blocks may not be open side by side, so each variant is opened for its rounds and read anew."""
    text = model.tokenizer.encode("\n".join(bundled_texts())[: 12 * given.length], add_special_tokens=False)
    ids = tuple(text[: given.length])
    other = (text[given.length], *ids[1:])
    rule = Contrast("entropy", cap=2.0)
    makers: dict[str, Callable[[ExitStack], Step]] = {
        "plain": lambda _: plain_step(model, ids, DynamicCache(config=model.hf.config)),
        "plain_roomy": lambda _: plain_step(model, ids, roomy_cache(model.hf.config)),
        "heads": lambda stack: contrast_step(stack.enter_context(opened(model, ids, Without(some_heads(model, given.top)))), rule),
        "prompts": lambda stack: contrast_step(stack.enter_context(opened(model, ids, other)), rule),
    }
    times: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(given.repeats + 1):
        for name, make in makers.items():
            with ExitStack() as stack:
                step = make(stack)
                token = step(None)
                seconds, _ = timed(step, token, given.tokens)
            if turn:  # the first round warms up
                times[name].append(seconds)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))

    found = {name: ratio(name, "plain") for name in ("heads", "prompts")}
    return {
        "contrast_per_token": max(found.values()),
        **{f"contrast_{name}": value for name, value in found.items()},
        **{f"contrast_{name}_vs_roomy": ratio(name, "plain_roomy") for name in found},
        **{f"ms_per_token_{name}": 1000 * statistics.median(own) for name, own in times.items()},
    }


def mudaf(model: Model, given: argparse.Namespace) -> dict[str, Any]:
    """Time of training steps, which take turns."""
    text = model.tokenizer.encode("\n".join(bundled_texts())[: 12 * given.length], add_special_tokens=False)[: given.length]
    each = (given.length - ANSWER - ASKS) // PASSAGES
    spans = tuple(Span(1 + i * each, (i + 1) * each) for i in range(PASSAGES))
    alone = (tuple(text[-ASKS:]), *(tuple(text[span.start : span.stop]) for span in spans))
    answer = given.length - ANSWER
    example = TrainExample(tuple(text), answer, Span(answer - ASKS, answer), spans, (True, *[False] * (PASSAGES - 1)), alone)
    trained = with_lora(model, Tuning())
    heads = some_heads(model, given.top)
    losses: dict[str, Objective] = {
        "sft": AnswerLoss(),
        "mudaf": HeadLoss(trained, MudafLoss(heads), 0.7),
        "lse": HeadLoss(trained, MudafLoss(heads, pool="lse"), 0.7),
        "separate": HeadLoss(trained, MudafLoss(heads, sim="concat", mode="separate"), 0.7),
    }
    optimiser = torch.optim.AdamW([p for p in trained.adapter.parameters() if p.requires_grad], lr=1e-5)
    times: dict[str, list[float]] = {name: [] for name in losses}
    trained.adapter.train()
    for turn in range(given.repeats + 1):
        for name, loss in losses.items():
            with loss.around():
                started = time.perf_counter()
                loss(trained.adapter, collate([example]))["loss"].backward()
                optimiser.step()
                optimiser.zero_grad()
                seconds = time.perf_counter() - started
            if turn:
                times[name].append(seconds)
    trained.adapter.eval()
    ratios = {name: statistics.median(a / b for a, b in zip(own, times["sft"], strict=True)) for name, own in times.items() if name != "sft"}
    return {
        "mudaf_step_vs_sft": ratios["mudaf"],
        **{f"{name}_step_vs_sft": ratio for name, ratio in ratios.items()},
        **{f"seconds_per_step_{name}": statistics.median(own) for name, own in times.items()},
    }


PARTS: dict[str, Callable[[Model, argparse.Namespace], dict[str, Any]]] = {"contrast": contrast, "mudaf": mudaf}


def main() -> None:
    given = options()
    model = load(given.model)
    result: dict[str, Any] = {
        "model": model.name,
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "hardware": hardware(),
        **{name: getattr(given, name) for name in ("length", "tokens", "repeats", "top")},
    }
    for part in given.only.split(","):
        result |= PARTS[part](model, given)
    show(result, given.json)


if __name__ == "__main__":
    main()
