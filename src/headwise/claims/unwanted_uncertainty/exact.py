"""What holds exactly of challenged answers: the second turn alone is touched, and many variants of it share the first one."""

from __future__ import annotations

from functools import partial

import torch
from transformers import DynamicCache

from headwise.attention.ablate import ablate
from headwise.attention.head_rows import LayerRows, head_rows
from headwise.caches.shared import fork, full_cache
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.evaluation.remedies import Medicine, Trial
from headwise.heads.types import HeadId, HeadSet
from headwise.models.forward import forward, token_tensor
from headwise.models.model import Model
from headwise.runtime.doubt_asked import (
    Answered,
    Dialogue,
    Doubts,
    dialogues,
    doubts,
    margins,
    margins_under,
    over_first_turns,
    plain_answers,
    replies,
)
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.runner import prefill

LENGTH, SHORT = 256, 128  # tokens of context; the second in the small version


def measure(bench: Bench) -> Measured:
    """All three claims on the same dialogues; first answers are the right ones, given or not, since exactness asks for no ability."""
    items = bench.pick(3, 1)
    options = DoubtQuestions(
        items=items, lengths=(bench.pick(LENGTH, SHORT),), depths=1, part="all", challenges="suggestion", max_new_tokens=8, seed=bench.seed,
    )  # fmt: skip
    asked = doubts(bench.model, options)
    given = dialogues(asked, [Answered(item, item.answers[0]) for item in asked.items], ("right",))
    findings = {}
    heads = single_heads(bench.model)
    some = bench.pick(heads, heads[:: max(1, len(heads) // 12)])
    parts = {
        "facts.turn_one": partial(turn_one, asked, given), "exact.one_first_turn": partial(one_first_turn, asked, given[0], some),
        "exact.uniform": partial(uniform, asked, given),
    }  # fmt: skip
    for done, (name, find) in enumerate(parts.items()):
        bench.report(done, len(parts), name)
        findings[f"doubt.{name}"] = find()
    return Measured(findings, {"dialogues": len(given), "tokens": [len(one.prompt.ids) for one in given]})


def single_heads(model: Model) -> list[HeadSet]:
    """Every head alone."""
    shape = model.heads.shape
    return [HeadSet((HeadId(layer, head),), shape) for layer in sorted(model.modules) for head in range(shape[1])]


def spread_heads(model: Model, count: int) -> HeadSet:
    """Some heads of all depths."""
    every = single_heads(model)
    chosen = {next(iter(every[round(i * (len(every) - 1) / max(1, count - 1))])) for i in range(count)}
    return HeadSet(tuple(sorted(chosen)), model.heads.shape)


@torch.no_grad()
def first_turn(asked: Doubts, given: list[Dialogue]) -> tuple[list[torch.Tensor], list[str]]:
    """Logits of every first turn, and the model's own first answers."""
    ids = [one.prompt.ids[: one.prompt.span("first").stop] for one in given]
    logits = [forward(asked.model.hf, token_tensor(asked.model.hf, each), full_cache(asked.model.hf)).logits[0].float().cpu() for each in ids]
    return logits, plain_answers(asked, [one.item.first for one in given])


def turn_one(asked: Doubts, given: list[Dialogue]) -> Finding:
    """First turns before and behind second turns under remedies, which run over the same cached past."""
    model = asked.model
    before, said = first_turn(asked, given)
    heads = spread_heads(model, max(1, model.heads.shape[0] * model.heads.shape[1] // 4))
    trials = [Trial("none", HeadSet((), model.heads.shape)), *(Trial(one, heads) for one in ("zero", "uniform", "scale"))]
    medicine, moved, changed = Medicine(model), 0.0, 0.0
    for one, past in over_first_turns(asked, given):
        kept = [layer.keys.clone() for layer in past.layers if getattr(layer, "keys", None) is not None]
        enter = partial(medicine.enter, one)
        values = margins_under(asked, one, past, trials, enter)
        replies(asked, one, past, trials, enter)
        moved = max(moved, float(abs(values[1:] - values[0]).max()))
        held = [layer.keys for layer in past.layers if getattr(layer, "keys", None) is not None]
        changed = max([changed, *(float((a - b).abs().max()) for a, b in zip(kept, held, strict=True))])
    after, again = first_turn(asked, given)
    changed = max([changed, *(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))])
    return Finding({"logits_changed": changed, "answers_changed": sum(a != b for a, b in zip(said, again, strict=True)), "moved": round(moved, 4)})


def one_first_turn(asked: Doubts, given: Dialogue, heads: list[HeadSet]) -> Finding:
    """Margins without single heads over one past, and for about twelve of them whole runs of the dialogue, each with a past of its own."""
    model = asked.model
    sets = [HeadSet((), model.heads.shape), *heads]
    step = max(1, len(sets) // 12)
    ((one, past),) = over_first_turns(asked, [given])
    together = margins(asked, one, past, sets, "zero")
    apart = [float(margins(asked, one, own_past(model, one), [each], "zero")[0]) for each in sets[::step]]
    difference = max(abs(float(a) - b) for a, b in zip(together[::step], apart, strict=True))
    effect = max(abs(float(value) - float(together[0])) for value in together)
    return Finding({"largest_difference": difference, "largest_effect": round(effect, 4)})


@torch.no_grad()
def own_past(model: Model, dialogue: Dialogue) -> DynamicCache:
    """A past that nobody else uses."""
    cache = full_cache(model.hf)
    prefill(model.hf, cache, dialogue.prompt.ids[: dialogue.prompt.span("first").stop])
    return cache


@torch.no_grad()
def uniform(asked: Doubts, given: list[Dialogue]) -> Finding:
    """Attention of the row that predicts the reply, of heads whose query is 0. Heads with a sliding window see fewer tokens, and are left out."""
    model = asked.model
    chosen = [head for head in spread_heads(model, 8) if model.heads.windows[head.layer] is None]
    if not chosen:
        return Finding.none("needs heads without a sliding window")
    heads, worst = HeadSet(tuple(chosen), model.heads.shape), {"uniform": 0.0, "own": 0.0}
    for one, past in over_first_turns(asked, given):
        ids = one.prompt.ids

        def use(seen: LayerRows, kind: str, length: int = len(ids)) -> None:
            weights = seen.attention(slice(0, 1), length)[0, :, 0].float()
            worst[kind] = max(worst[kind], float((weights * length - 1).abs().max()))

        for kind, cut in (("uniform", heads), ("own", HeadSet((), model.heads.shape))):
            with ablate(model.hf, cut, "uniform"), head_rows(model.hf, heads, lambda now: 1, partial(use, kind=kind)):
                prefill(model.hf, fork(past), ids[past.get_seq_length() :])
    return Finding({"largest_difference": worst["uniform"], "unchanged": round(worst["own"], 4)})
