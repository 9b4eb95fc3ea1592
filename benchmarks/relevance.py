"""Relevance of all heads against a forward pass, and against the route that stores all attention matrices.

Each route runs in a process of its own, so that peak memory is its own; all of them take turns, round after round.

`speed_vs_stored`, `memory_vs_stored`: heads, tokens and attended tokens by `attribute(model, RULE, sources="weights")`, over transformers' eager
attention with `output_attentions` and `retain_grad` on every matrix, from which the same tensor is summed. RULE is the first of --rules; for
`gradient` both must agree (`difference_from_stored`). Peaks are those of whole processes.
`attribution_vs_forward`: heads and tokens of all layers by the default rule, forward and backward, over one forward pass without gradients (SDPA),
both in one process.
`whole_answer_vs_token`: an answer of ANSWER tokens in one backward pass over its first token alone.
Random tokens; what is explained is the last logit. --model NAME (default smollm2), --tokens N, --rules all of them or some.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from common import best_of, hardware, peak_memory, show

from headwise.attention.attribute import DEFAULT, RULES, attribute
from headwise.models.load import load

ANSWER = 16


def token_ids(hf: Any, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, hf.config.get_text_config(decoder=True).vocab_size, (1, tokens), generator=generator)


def forward(hf: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        hf(input_ids=ids, use_cache=False, logits_to_keep=1)


def attribution(
    hf: Any, ids: torch.Tensor, rule: str, sources: str | None = None, rows: str = "all", answer: int = 1
) -> torch.Tensor:
    with attribute(hf, rule, sources=sources, rows=rows) as seen:
        logits = hf(input_ids=ids, logits_to_keep=answer).logits
        seen.explain(logits[0].amax(dim=-1).sum())
    return seen.heads if sources is None else seen.sources


def stored(hf: Any, ids: torch.Tensor) -> torch.Tensor:
    """Positive relevance per head and source token from attention matrices that are all held, with their gradients."""
    embeddings = hf.get_input_embeddings()(ids).detach().requires_grad_(True)
    out = hf(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1, output_attentions=True)
    for weights in out.attentions:
        weights.retain_grad()
    out.logits[0, -1].max().backward()
    return torch.stack([(weights.detach() * weights.grad).clamp(min=0).sum(dim=2) for weights in out.attentions], dim=1)


def one_route(route: str, model: str, tokens: int, repeats: int) -> dict[str, object]:
    """What one process measures."""
    hf = load(model, "cpu").hf.requires_grad_(False)
    ids = token_ids(hf, tokens)
    if route == "stored":
        hf.set_attn_implementation("eager")
        started = time.perf_counter()
        found = stored(hf, ids)
        return {"seconds": time.perf_counter() - started, "peak": peak_memory(), "sum": float(found.sum())}
    if route == "forward":
        forward(hf, ids[:, :64])
        return {"seconds": best_of(repeats, lambda: forward(hf, ids))[0], "peak": peak_memory()}
    rule, _, kind = route.partition(":")
    options: dict[str, Any] = {
        "": {},
        "sources": {"sources": "weights"},
        "last": {"sources": "weights", "rows": "last"},
        "answer": {"answer": ANSWER},
    }[kind]
    forward(hf, ids[:, :64])
    attribution(hf, ids[:, :64], rule, **options)
    times = best_of(repeats, lambda: forward(hf, ids), lambda: attribution(hf, ids, rule, **options))
    return {
        "forward": times[0],
        "seconds": times[1],
        "peak": peak_memory(),
        "sum": float(attribution(hf, ids, rule, **options).nansum()),
    }


def measured(route: str, given: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--route",
        route,
        "--model",
        given.model,
        "--tokens",
        str(given.tokens),
        "--repeats",
        "1",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def middle(rounds: list[dict[str, float]], name: str) -> float:
    return statistics.median(one[name] for one in rounds)


def compared(given: argparse.Namespace) -> dict[str, object]:
    rules = list(RULES) if given.rules == "all" else given.rules.split(",")
    first, default = rules[0], DEFAULT if DEFAULT in rules else rules[0]
    routes = ["stored", *rules, f"{first}:sources", f"{first}:last", f"{first}:answer"]
    rounds: dict[str, list[dict[str, float]]] = {route: [] for route in routes}
    for i in range(given.repeats):
        for route in routes:
            if route != "stored" or i == 0 or given.tokens <= 1024:  # it takes long, and holds much
                rounds[route].append(measured(route, given))
    whole = rounds[f"{first}:sources"]
    result: dict[str, object] = {
        "rule": first,
        "rule_of_attribution_vs_forward": default,
        "speed_vs_stored": middle(rounds["stored"], "seconds") / middle(whole, "seconds"),
        "memory_vs_stored": middle(whole, "peak") / middle(rounds["stored"], "peak"),
        "attribution_vs_forward": statistics.median(one["seconds"] / one["forward"] for one in rounds[default]),
        "speed_vs_stored_heads_only": middle(rounds["stored"], "seconds") / middle(rounds[first], "seconds"),
        "memory_vs_stored_heads_only": middle(rounds[first], "peak") / middle(rounds["stored"], "peak"),
        "whole_answer_vs_token": middle(rounds[f"{first}:answer"], "seconds") / middle(rounds[first], "seconds"),
    }
    if first == "gradient":
        result["difference_from_stored"] = abs(whole[0]["sum"] / rounds["stored"][0]["sum"] - 1)
    for route, found in rounds.items():
        result[f"{route} seconds"] = middle(found, "seconds")
        result[f"{route} peak GiB"] = middle(found, "peak") / 2**30
        if route != "stored":
            result[f"{route} vs forward"] = statistics.median(one["seconds"] / one["forward"] for one in found)
    return result | {"model": given.model, "tokens": given.tokens, "answer": ANSWER, "repeats": given.repeats} | hardware()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--rules", default="all", help="separated by commas; the first one is compared with the stored route")
    parser.add_argument("--route", default="", help="measure one route in this process, as the rounds do")
    given = parser.parse_args()
    if given.route:
        print(json.dumps(one_route(given.route, given.model, given.tokens, given.repeats)))
    else:
        show(compared(given), given.json)


if __name__ == "__main__":
    main()
