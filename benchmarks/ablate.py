"""One context, 50 ablation variants in scope `answer`: total time in units of one plain SDPA prefill of the prompt."""

from __future__ import annotations

import torch
from common import best_of, hardware, options, show

from headwise.attention import ablate
from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.heads import HeadSet
from headwise.models.load import load
from headwise.models.names import DEFAULT
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, GroupSpec, Task, make_group
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles
from headwise.runtime.answer import answer_variants, stop_ids
from headwise.runtime.runner import Leaf, prefill

VARIANTS, LENGTH, LIMIT = 50, 1024, 32


def main() -> None:
    chosen = options(__doc__)
    model = load(chosen.model or DEFAULT)
    encoder = PieceEncoder(model.tokenizer)
    task = Task(
        bundled_needles("test")[:1], Haystack(bundled_texts(), encoder), NeedleComposer(encoder), GridOptions((LENGTH,), (0.5,))
    )
    prompt = make_group(GroupSpec(LENGTH, 0, 0), task, model.positions).prompts[0]
    layers, heads = model.heads.shape
    generator = torch.Generator().manual_seed(0)
    sets = [
        HeadSet.of(
            [divmod(int(i), heads) for i in torch.randperm(layers * heads, generator=generator)[: 1 + n % 16]], (layers, heads)
        )
        for n in range(VARIANTS)
    ]
    enter = lambda variants: ablate(model.hf, list(variants), scope="answer", answer_from=len(prompt.ids) - 1)  # noqa: E731

    def variants() -> list[object]:
        with attached(model.hf):
            past = full_cache(model.hf)
            prefill(model.hf, past, prompt.ids[:-1])
            return list(answer_variants(model.hf, Leaf(0, prompt.ids, past), prompt.gold, sets, enter, stop_ids(model), LIMIT))

    @torch.no_grad()
    def plain() -> None:
        model.hf(input_ids=torch.tensor([prompt.ids]), use_cache=True, logits_to_keep=1)

    variants(), plain()
    ours, one = best_of(chosen.repeats if chosen.model else max(5, chosen.repeats), variants, plain)
    failing = sum(answer.ids != tuple(prompt.gold[: len(answer.ids)]) for answer in variants())
    show(
        {
            "model": model.name,
            "prefills_for_50_variants": ours / one,
            "variants_that_changed_the_answer": failing,
            "context": LENGTH,
            "hardware": hardware(),
        },
        chosen.json,
    )


if __name__ == "__main__":
    main()
