"""Seconds per traced answer: the probe, mean attention rows, relevance at the embeddings, weights per head, and leave one passage out.

Four passages of the bundled novels and an answer of four tokens. What the answers are worth: `headwise claims run --experiment trace`; what tracing
costs per token while generating: `--experiment trace-overhead`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import best_of, hardware, options, show

from headwise.claims.in_context_atlas.exact import plain_probe
from headwise.claims.in_context_atlas.trace_rivals import Rivals
from headwise.heads import HeadwiseError
from headwise.methods.trace.answer import probe_for
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.prompts.answers import prompt_of_text
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts

PASSAGES, WORDS, ANSWER = 4, 60, 4


def main() -> None:
    chosen = options(__doc__)
    model = load(chosen.model or str(bundled_model()))
    try:
        probe = probe_for(model, None)
    except HeadwiseError:
        probe = plain_probe(model)
    words = " ".join(bundled_texts()).split()
    parts = [" ".join(words[start : start + WORDS]) for start in range(0, PASSAGES * WORDS, WORDS)]
    prompt = prompt_of_text(PieceEncoder(model.tokenizer), "\n\n".join([*parts, "Who is it about?"]))
    answer = list(prompt.ids[20 : 20 + ANSWER])
    rivals = Rivals(model, probe, probe.heads, ("gradient", "gim"))
    rivals.learned = np.ones(model.heads.shape)
    ways = {
        "probe": lambda: rivals.by_probe(prompt, answer),
        "mean rows": lambda: rivals.by_rows(prompt, answer),
        "gradient": lambda: rivals.by_relevance(prompt, answer, "gradient"),
        "gim": lambda: rivals.by_relevance(prompt, answer, "gim"),
        "weights per head": lambda: rivals.by_learned(prompt, answer),
        "leave one out": lambda: rivals.by_leaving_out(prompt, answer),
    }
    seconds = best_of(chosen.repeats, *ways.values())
    found: dict[str, Any] = {f"{name}, seconds per answer": each for name, each in zip(ways, seconds, strict=True)}
    show(found | {"tokens": len(prompt.ids), "heads": len(probe.heads), "hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()
