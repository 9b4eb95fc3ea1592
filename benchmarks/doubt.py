"""Cost of single-head knock-outs over one cached first turn, and what the best remedy keeps on the lab model that was taught to doubt.

`prefills_for_64_heads`: time of 64 single-head variants on one dialogue behind 1,024 tokens, the first turn's own prefill included, in prefills of
1,024 tokens that are measured in turn with it. `separate_runs`: the same variants one by one over copies of the past. `kept_right`, `kept_wrong`:
shares of right and of wrong first answers that are kept on the test questions, with the remedy that was chosen on others; `..._unchanged`: without.

    python benchmarks/doubt.py --json                  # lab-6m and world-6m-reask
    python benchmarks/doubt.py --model smollm2 --json  # the cost on the real model
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import best_of, hardware, options, show

import headwise as hw
from headwise.attention.ablate import ablate
from headwise.caches.shared import fork, full_cache
from headwise.heads.types import HeadId, HeadSet
from headwise.models.forward import forward, token_tensor
from headwise.models.model import Model
from headwise.runtime.knock_outs import variant_logprobs
from headwise.runtime.runner import prefill

PAST, REST, HEADS = 1024, 40, 64


def cost(model: Model, repeats: int) -> dict[str, Any]:
    """Knock-outs of 64 heads spread over all layers, in prefills; and how far they are from separate runs."""
    shape = model.heads.shape
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, model.hf.config.vocab_size - 10, (PAST + REST + 2,), generator=generator).tolist()
    past, rest, words = ids[:PAST], ids[PAST : PAST + REST], [[ids[-2]], [ids[-1]]]
    layers = sorted(model.modules)
    every = [HeadSet((HeadId(layer, head),), shape) for layer in layers for head in range(shape[1])]
    sets = [every[round(i * (len(every) - 1) / (HEADS - 1))] for i in range(HEADS)]
    found: dict[str, torch.Tensor] = {}

    def one_prefill() -> None:
        prefill(model.hf, full_cache(model.hf), past)

    def together() -> None:
        cache = full_cache(model.hf)
        prefill(model.hf, cache, past)
        found["together"] = variant_logprobs(model, cache, rest, words, sets)

    def separately() -> None:
        cache = full_cache(model.hf)
        prefill(model.hf, cache, past)
        rows = []
        for chosen in sets:
            with torch.no_grad(), ablate(model.hf, chosen, "zero"):
                logits = forward(model.hf, token_tensor(model.hf, rest), fork(cache), logits_to_keep=1).logits
            rows.append(logits[0, -1].float().log_softmax(dim=-1)[[word[0] for word in words]])
        found["separately"] = torch.stack(rows)

    separately()
    unit, shared, apart = best_of(repeats, one_prefill, together, separately)
    difference = (found["together"] - found["separately"]).abs().max()
    return {
        "model": model.name, "prefill_s": unit, "prefills_for_64_heads": shared / unit, "separate_runs": apart / unit,
        "largest_difference": float(difference),
    }  # fmt: skip


def kept(folder: Path) -> dict[str, Any]:
    """Find, choose and test on the lab model that takes answers back only where it is cued."""
    from headwise.methods.doubt.calm import CalmOptions, calm
    from headwise.runtime.doubt_questions import DoubtQuestions
    from headwise_lab.doubt import CUED, write_reask

    data, wordings = write_reask(folder, 240)
    model = hw.load("world-6m-reask")
    asked: dict[str, Any] = {
        "data": data, "wordings": wordings, "passages": True, "wording": "bare", "form": "yes-no", "challenges": CUED, "items": 60,
    }  # fmt: skip
    scores = hw.find(model, hw.Doubt(**asked, knock_outs=16))
    select, test = (DoubtQuestions(**asked, part=part) for part in ("select", "test"))
    result = calm(model, scores, select, test, CalmOptions(top=(1, 2, 4), remedies=("zero", "token"), controls=10))
    chosen, none = result["chosen"], result["test"][0]
    return {
        "kept_right": chosen["kept_right"], "kept_wrong": chosen["kept_wrong"], "kept_right_unchanged": none["kept_right"],
        "kept_wrong_unchanged": none["kept_wrong"], "headline": chosen["headline"], "remedy": f"{chosen['remedy']} of {chosen['k']} heads",
        "verdict": chosen["verdict"], "optimism": chosen["optimism"],
    }  # fmt: skip


def main() -> None:
    given = options(__doc__.split("\n")[0])
    parts = set(filter(None, given.only.split(","))) or {"cost", "kept"}
    result: dict[str, Any] = hardware()
    if "cost" in parts:
        result |= cost(hw.load(given.model or "lab-6m"), given.repeats)
    if "kept" in parts:
        with tempfile.TemporaryDirectory() as folder:
            result |= kept(Path(folder))
    show(result, given.json)


if __name__ == "__main__":
    main()
