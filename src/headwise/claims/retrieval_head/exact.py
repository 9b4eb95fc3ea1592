"""Claims that hold exactly or not at all: one pass finds what the token-by-token procedure finds, and old errors are not repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwise.attention import ablate, observe
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.claims.retrieval_head.scores import fitting_task
from headwise.claims.retrieval_head.sizes import sizes_of
from headwise.heads import HeadScores, PromptError
from headwise.maths.copy import copy_hits
from headwise.models.forward import token_tensor
from headwise.models.model import Model
from headwise.prompts.grid import GroupSpec, Task, make_group, plan_groups
from headwise.prompts.needles import Needle
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import stop_ids, traced_answer
from headwise.runtime.runner import leaves
from headwise.stats.controls import layer_matched_random

LENGTH, STEPS = 256, 24  # tokens of a context, and of an answer, that are compared step by step
PLACES = (0.1, 0.5, 0.9)
DRAWS, CHOSEN = 999, 8
LONG_ANSWERS = (11, 20, 21, 30, 31, 40)  # distinct tokens
FILLER = 60


def measure(bench: Bench) -> Measured:
    """All of them, on prompts of bundled needles."""
    sizes = replace(sizes_of(bench), needles=bench.pick(4, 2))
    model, details = bench.model, {}
    findings = {"copy-exact.control": control(model)}
    try:
        task = fitting_task(model, "detect", (LENGTH,), PLACES, sizes)
        prompts = _prompts(model, task)
    except PromptError as error:
        rest = ("one_pass", "refused", "spans", "bos", "restored")
        return Measured(findings | {f"copy-exact.{name}": Finding.none(str(error)) for name in rest})
    findings |= {"copy-exact.refused": refused(model, task), "copy-exact.spans": spans(model, prompts), "copy-exact.bos": bos(model, prompts)}
    findings["copy-exact.restored"] = restored(model, prompts)
    findings["copy-exact.one_pass"], details["steps"] = one_pass(bench, [prompt for _, prompt in prompts[:: len(PLACES)]])
    return Measured(findings, details)


def _prompts(model: Model, task: Task) -> list[tuple[Needle, Prompt]]:
    specs = sorted(plan_groups(task, model.positions), key=lambda spec: spec.needle)
    groups = [make_group(GroupSpec(spec.length, spec.needle, spec.window), task, model.positions) for spec in specs]
    return [(group.needle, prompt) for group in groups for prompt in group.prompts]


def one_pass(bench: Bench, prompts: Sequence[Prompt]) -> tuple[Finding, list[dict[str, int]]]:
    """Answers and hits of one pass over each answer beside those of token-by-token decoding with attention weights."""
    model, stop = bench.model, stop_ids(bench.model)
    if next(model.hf.parameters()).dtype != torch.float32:
        return Finding.none("needs float32: in 16 bits two kernels may choose different keys among nearly equal ones"), []
    if model.is_hybrid:
        return Finding.none("needs attention in every layer: recurrent layers differ between one pass and single steps"), []
    rows = []
    with observe(model.hf, argmax_only=True) as seen:
        ours = {
            leaf.index: traced_answer(model.hf, seen, leaf, prompts[leaf.index].gold, stop, STEPS, False)
            for leaf in leaves(model.hf, [prompt.ids for prompt in prompts])
        }
    for number, prompt in enumerate(prompts):
        bench.report(number, len(prompts), "token by token")
        answer, span = ours[number], prompt.span("answer")
        said, strongest = token_by_token(model, prompt.ids, len(answer.ids))
        keys, emitted = torch.tensor(prompt.ids), torch.tensor(answer.ids)
        hits, slow = (copy_hits(table.cpu(), keys, emitted, (span.start, span.stop)) for table in (answer.argmax, strongest))
        other, differing = int(tuple(said) != answer.ids), int((hits != slow).sum())
        rows.append({"differing": differing, "other_tokens": other, "hits": int(slow.sum()), "steps": len(said)})
    return Finding({name: sum(row[name] for row in rows) for name in rows[0]}), rows


@torch.no_grad()
def token_by_token(model: Model, ids: Sequence[int], count: int) -> tuple[list[int], Tensor]:
    """Greedy decoding without any of our attention: the whole text is read anew for each token, and its weights are looked through.

    Args:
        model: With attention in every layer.
        ids: The prompt.
        count: Tokens to say.

    Returns:
        Its tokens, and [layer, head, step] the strongest key of the row that predicts each.
    """
    before = model.hf.config._attn_implementation
    said: list[int] = []
    strongest: list[Tensor] = []
    try:
        model.hf.set_attn_implementation("eager")
        for _ in range(count):
            output = model.hf(input_ids=token_tensor(model.hf, [*ids, *said]), use_cache=False, output_attentions=True)
            strongest.append(torch.stack([weights[0, :, -1].argmax(dim=-1) for weights in output.attentions]))
            said.append(int(output.logits[0, -1].argmax()))
    finally:
        model.hf.set_attn_implementation(before)
    return said, torch.stack(strongest, dim=-1)


def spans(model: Model, prompts: Sequence[tuple[Needle, Prompt]]) -> Finding:
    """Whether answer spans hold the answer; and where a search for a window of overlapping tokens would find long ones."""
    decode = model.tokenizer.decode
    wrong = sum(decode(prompt.ids[slice(*prompt.span("answer"))]).strip() != needle.answer for needle, prompt in prompts)
    early = [_early(count) for count in LONG_ANSWERS]
    return Finding({"wrong": wrong, "spans": len(prompts), "search_early_least": min(early), "search_early_most": max(early)})


def _early(count: int) -> int:
    """How many tokens early the search of the released code finds an answer of distinct tokens between other ones."""
    answer = list(range(FILLER, FILLER + count))
    ids = [*range(FILLER), *answer, *range(FILLER + count, 2 * FILLER + count)]
    return FILLER - found_by_overlap(ids, answer)[0]


def found_by_overlap(ids: Sequence[int], wanted: Sequence[int]) -> tuple[int, int]:
    """The first window whose set of ids covers over 90 % of the wanted distinct ones, as the card describes the released code; (-1, -1): none."""
    needed = set(wanted)
    for start in range(len(ids)):
        if len(needed & set(ids[start : start + len(wanted)])) > 0.9 * len(needed):
            return start, start + len(wanted)
    return -1, -1


def refused(model: Model, task: Task) -> Finding:
    """Needles that cannot be placed must raise; none may end as a row of zeros."""
    good = Needle("The code is 7.", "What is the code?", "7")

    def asked(needle: Needle, length: int) -> Any:
        return plan_groups(replace(task, needles=[needle], grid=replace(task.grid, lengths=(length,))), model.positions)

    attempts: dict[str, Callable[[], Any]] = {
        "answer not in the needle": lambda: Needle("The code is 7.", "What is the code?", "8"),
        "answer twice in the needle": lambda: Needle("7 is the code, 7.", "What is the code?", "7"),
        "empty question": lambda: Needle("The code is 7.", " ", "7"),
        "no room for the needle": lambda: asked(good, 1),
    }
    if model.positions is not None:
        attempts["longer than the model"] = lambda: asked(good, int(model.positions or 0) + 1)
    accepted = 0
    for attempt in attempts.values():
        try:
            attempt()
            accepted += 1
        except PromptError:
            continue
    lost = found_by_overlap(list(range(FILLER)), [FILLER, FILLER + 1])
    return Finding({"accepted": accepted, "attempts": len(attempts), "search_finds": int(lost[0] >= 0)})


def control(model: Model) -> Finding:
    """Draws of random heads beside chosen ones, and those of the released test, which compares tuples with lists."""
    shape = model.heads.shape
    rng = np.random.default_rng(0)
    scores = HeadScores(rng.random(shape), "copy")
    count = max(1, min(CHOSEN, shape[0] * shape[1] // 4))
    chosen = scores.top(count)
    draws = [layer_matched_random(chosen, scores, (1, number)) for number in range(DRAWS)]
    unlike = sum(tuple(draw) != tuple(layer_matched_random(chosen, scores, (1, number))) for number, draw in enumerate(draws))
    listed: list[Any] = [list(head) for head in chosen]
    everyone = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    never_excluded = sum(head not in listed for head in everyone) - (len(everyone) - count)
    numbers = {
        "shared": sum(len(set(draw) & set(chosen)) for draw in draws),
        "outside": sum(not (0 <= head.layer < shape[0] and 0 <= head.head < shape[1]) for draw in draws for head in draw),
        "unlike": unlike,
        "draws": DRAWS,
        "released_lets_through": never_excluded,
    }
    return Finding(numbers)


def bos(model: Model, prompts: Sequence[tuple[Needle, Prompt]]) -> Finding:
    """Prompts with another number of beginning-of-text tokens than the tokenizer puts in front of one text."""
    tokenizer = model.tokenizer
    token = tokenizer.bos_token_id
    if token is None:
        return Finding.none("needs a tokenizer that has a beginning-of-text token")
    wanted = list(tokenizer("a").input_ids).count(token)
    wrong = sum(prompt.ids.count(token) != wanted for _, prompt in prompts)
    return Finding({"wrong": wrong, "prompts": len(prompts), "wanted": wanted})


class _Logits(NamedTuple):
    before: Tensor
    inside: Tensor
    after: Tensor


@torch.no_grad()
def restored(model: Model, prompts: Sequence[tuple[Needle, Prompt]]) -> Finding:
    """Whether a model is bit for bit what it was once observation and ablation are over, and is another one inside."""
    ids, shape = token_tensor(model.hf, prompts[0][1].ids), model.heads.shape
    every = [(layer, head) for layer in model.heads.full_layers for head in range(shape[1])]
    largest, least = 0.0, float("inf")
    for mode in ("zero", "uniform"):
        before = model.hf(input_ids=ids, use_cache=False).logits
        with observe(model.hf, argmax_only=True) as seen:
            seen.rows = 1
            with ablate(model.hf, every[:CHOSEN], mode=mode, scope="all"):
                inside = model.hf(input_ids=ids, use_cache=False).logits
        logits = _Logits(before, inside, model.hf(input_ids=ids, use_cache=False).logits)
        largest = max(largest, float((logits.after - logits.before).abs().max()))
        least = min(least, float((logits.inside - logits.before).abs().max()))
    return Finding({"left_behind": largest, "changed_inside": least})
