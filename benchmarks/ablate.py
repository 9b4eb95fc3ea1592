"""One context, 50 ablation variants in scope `answer`: total time in units of one plain SDPA prefill of the prompt."""

from __future__ import annotations

import torch
from common import best_of, hardware, options, show

from headwise.attach import ablate, attached
from headwise.attach.caches import full_cache
from headwise.core import HeadSet
from headwise.engine import Leaf, answer_variants, prefill
from headwise.evaluate.provenance import stop_ids
from headwise.families import load_model
from headwise.lab import bundled_model
from headwise.prompts import Haystack, NeedleComposer, PieceEncoder, bundled_needles, bundled_texts
from headwise.prompts.grid import GridOptions, GroupSpec, Task, make_group

VARIANTS, LENGTH, LIMIT = 50, 1024, 32


def main() -> None:
    chosen = options(__doc__)
    loaded = load_model(str(bundled_model()))
    encoder = PieceEncoder(loaded.tokenizer)
    task = Task(
        bundled_needles("test")[:1], Haystack(bundled_texts(), encoder), NeedleComposer(encoder), GridOptions((LENGTH,), (0.5,))
    )
    prompt = make_group(GroupSpec(LENGTH, 0, 0), task, loaded.layout.positions).prompts[0]
    layers, heads = loaded.layout.shape
    generator = torch.Generator().manual_seed(0)
    sets = [
        HeadSet.of(
            [divmod(int(i), heads) for i in torch.randperm(layers * heads, generator=generator)[: 1 + n % 16]], (layers, heads)
        )
        for n in range(VARIANTS)
    ]
    enter = lambda variants: ablate(loaded.model, list(variants), scope="answer", answer_from=len(prompt.ids) - 1)  # noqa: E731

    def variants() -> list[object]:
        with attached(loaded.model):
            past = full_cache(loaded.model)
            prefill(loaded.model, past, prompt.ids[:-1])
            return list(
                answer_variants(loaded.model, Leaf(0, prompt.ids, past), prompt.gold, sets, enter, stop_ids(loaded), LIMIT)
            )

    @torch.no_grad()
    def plain() -> None:
        loaded.model(input_ids=torch.tensor([prompt.ids]), use_cache=True, logits_to_keep=1)

    variants(), plain()
    ours, one = best_of(max(5, chosen.repeats), variants, plain)
    failing = sum(answer.ids != tuple(prompt.gold[: len(answer.ids)]) for answer in variants())
    show(
        {
            "prefills_for_50_variants": ours / one,
            "variants_that_changed_the_answer": failing,
            "context": LENGTH,
            "hardware": hardware(),
        },
        chosen.json,
    )


if __name__ == "__main__":
    main()
