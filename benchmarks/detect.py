"""Detection against its floor (plain SDPA prefills of the same prompts) and against the official procedure written plainly.

Two models: a random Llama of 8 layers, 512 wide, at 4,096 tokens, and a trained one (--model, or the bundled lab model) at 1,024. Ten
depths over one haystack. --only random or trained measures one of them.

The official procedure prefills without a mask of its own, then decodes token by token with eager attention and output_attentions=True and
loops over layers and heads. Its stop test is a literal piece that most vocabularies never emit, so it always makes 50 tokens (method card,
section 4); `..._same_stop` is the same procedure stopping where ours stops. `bound_...` is the official time over that of reading each
distinct token once and nothing else. Hits are compared step by step over the answer. A random model says nothing meaningful: its own greedy
50 tokens, found and confirmed beforehand, are its gold answers.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import torch
from common import best_of, hardware, options, peak_memory, show
from transformers import LlamaConfig, LlamaForCausalLM

from headwise.attention import observe
from headwise.attention.plan import attached
from headwise.caches.shared import fork
from headwise.maths.copy import copy_hits
from headwise.models.load import load
from headwise.models.model import as_model
from headwise.models.names import DEFAULT
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, GroupSpec, Task, even_depths, make_group
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles
from headwise.prompts.prompt import Prompt, Span
from headwise.runtime.answer import decode_one, stop_ids, traced_answer, verify_draft
from headwise.runtime.runner import Leaf, leaves

DEPTHS, LIMIT = 10, 50
Case = tuple[Any, list[Prompt], frozenset[int]]


def random_model(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        max_position_embeddings=8192,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def random_case(dtype: torch.dtype, length: int = 4096, answer: int = LIMIT) -> Case:
    """Random haystack, one needle at ten depths, the model's own answer as gold."""
    model = random_model(dtype)
    generator = torch.Generator().manual_seed(1)
    text, needle, question = (tuple(torch.randint(2, 8192, (n,), generator=generator).tolist()) for n in (length - 30, 20, 10))
    prompts = []
    for depth in even_depths(DEPTHS):
        at = round(depth * len(text))
        ids = (*text[:at], *needle, *text[at:], *question)
        prompts.append(Prompt(ids, {"answer": Span(at, at + len(needle))}))
    with attached(model):
        own = {leaf.index: own_answer(model, leaf, answer) for leaf in leaves(model, [p.ids for p in prompts])}
    return model, [Prompt(p.ids, p.spans, own[i]) for i, p in enumerate(prompts)], frozenset()


def own_answer(model: Any, leaf: Leaf, length: int) -> tuple[int, ...]:
    """Greedy tokens that a pass over all of them confirms: in bfloat16 a random model often changes its mind between kernels."""
    gold = decode_one(model, fork(leaf.past), leaf.ids, frozenset(), length)
    while True:
        draft = verify_draft(model, fork(leaf.past), leaf.rest, gold)
        agreed = int(draft.accepted[0])
        if agreed == len(gold):
            return gold
        said = draft.predicted[0, : agreed + 1].tolist()
        gold = decode_one(model, fork(leaf.past), leaf.ids, frozenset(), length, said) if len(said) < length else tuple(said)


def trained_case(name: str, length: int = 1024) -> Case:
    """One bundled needle at ten depths."""
    model = load(name or DEFAULT)
    encoder = PieceEncoder(model.tokenizer)
    needles = bundled_needles("detect")[3:4]
    task = Task(needles, Haystack(bundled_texts(), encoder), NeedleComposer(encoder), GridOptions((length,), even_depths(DEPTHS)))
    group = make_group(GroupSpec(length, 0, 0), task, model.positions)
    return model.hf, list(group.prompts), stop_ids(model)


def ours(case: Case) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """Emitted ids and hits [L, H, T] of every prompt."""
    model, prompts, stop = case
    hybrid, found = as_model(model).is_hybrid, {}
    with observe(model, argmax_only=True) as seen:
        for leaf in leaves(model, [p.ids for p in prompts]):
            prompt = prompts[leaf.index]
            answer = traced_answer(model, seen, leaf, prompt.gold, stop, len(prompt.gold) if not stop else LIMIT, hybrid)
            hits = copy_hits(answer.argmax, torch.tensor(prompt.ids), torch.tensor(answer.ids), prompt.span("answer"))
            found[leaf.index] = (answer.ids, hits)
    return [found[i] for i in range(len(prompts))]


@torch.no_grad()
def plain_prefills(case: Case) -> None:
    model, prompts, _ = case
    for prompt in prompts:
        model(input_ids=torch.tensor([prompt.ids]), use_cache=True, logits_to_keep=1)


def shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def distinct_share(case: Case) -> float:
    """Tokens that any method must read once, whatever it shares, as a share of the tokens of all prompts."""
    ordered = sorted(prompt.ids for prompt in case[1])
    new = len(ordered[0]) + sum(len(ids) - shared(before, ids) for before, ids in pairwise(ordered))
    return new / sum(map(len, ordered))


def official(case: Case, same_stop: bool) -> list[Any]:
    from tests.reference.official_copy import official_copy_run

    model, prompts, stop = case
    return [official_copy_run(model, p.ids, p.span("answer"), stop if same_stop else frozenset(), LIMIT) for p in prompts]


def identical(case: Case, theirs: list[Any]) -> bool:
    """Same ids and the same hits at every layer, head and step of the answer."""
    same = True
    for prompt, (ids, hits), run in zip(case[1], ours(case), theirs, strict=True):
        steps = len(ids)
        emitted = torch.tensor(ids)
        slow = copy_hits(run[2][..., :steps], torch.tensor(prompt.ids), emitted, prompt.span("answer"))
        same &= tuple(run[1][:steps]) == tuple(ids) and bool(torch.equal(slow, hits))
    return same


def memory(what: str) -> None:
    """Run in a process of its own: print the peak resident size after the work, minus that before it."""
    case = random_case(torch.float32, answer=2)
    before = peak_memory()
    plain_prefills((case[0], case[1][:1], case[2])) if what == "plain" else ours(case)
    print(before, peak_memory())


def extra_peak_memory() -> float:
    peaks = {}
    for what in ("plain", "ours"):
        done = subprocess.run([sys.executable, __file__, f"--only=memory-{what}"], capture_output=True, text=True, check=True)
        peaks[what] = int(done.stdout.split()[1])
    return peaks["ours"] / peaks["plain"] - 1


def measure_random(repeats: int) -> dict[str, object]:
    result: dict[str, object] = {}
    for dtype in (torch.float32, torch.bfloat16):
        case = random_case(dtype)
        ours(case), plain_prefills(case)
        mine, plain = best_of(repeats, lambda c=case: ours(c), lambda c=case: plain_prefills(c))
        result[f"time_vs_prefill_{str(dtype).split('.')[1]}"] = mine / plain
        if dtype == torch.float32:
            theirs: list[Any] = []
            (slow,) = best_of(1, lambda c=case, t=theirs: t.extend(official(c, False)))
            result |= {"speedup_vs_official_4k": slow / mine, "identical_hits_4k": identical(case, theirs)}
    result["time_vs_prefill"] = max(float(str(result[f"time_vs_prefill_{d}"])) for d in ("float32", "bfloat16"))
    return result | {"extra_peak_memory": extra_peak_memory()}


def measure_trained(name: str, repeats: int) -> dict[str, object]:
    case = trained_case(name)
    ours(case), plain_prefills(case)
    mine, plain = best_of(repeats if name else max(5, repeats), lambda: ours(case), lambda: plain_prefills(case))
    theirs: list[Any] = []
    slow, same_stop = best_of(1, lambda: theirs.extend(official(case, False)), lambda: official(case, True))
    return {
        "model": name or DEFAULT,
        "time_vs_prefill_trained": mine / plain,
        "speedup_vs_official_trained": slow / mine,
        "distinct_tokens": distinct_share(case),
        "bound_vs_official_trained": slow / (plain * distinct_share(case)),
        "speedup_vs_official_trained_same_stop": same_stop / mine,
        "identical_hits_trained": identical(case, theirs),
        "answer_tokens_trained": sum(len(ids) for ids, _ in ours(case)) / DEPTHS,
    }


def main() -> None:
    chosen = options(__doc__)
    if chosen.only.startswith("memory-"):
        memory(chosen.only.removeprefix("memory-"))
        return
    result: dict[str, object] = {"hardware": hardware()}
    if chosen.only in ("", "random"):
        result |= measure_random(chosen.repeats)
    if chosen.only in ("", "trained"):
        result |= measure_trained(chosen.model, chosen.repeats)
    show(result, chosen.json)


if __name__ == "__main__":
    main()
