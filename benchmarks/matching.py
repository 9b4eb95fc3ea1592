"""Does a model look at the name? Six facts of one relation; the value of one name is asked for; by what stands between name and value.

Whoever goes by the relation alone is right once in six times. Test names of the micro-world, first token of the value.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import hardware, show

from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model, bundled_names
from headwise.prompts.encoder import PieceEncoder
from headwise_lab.microworld.facts import Fact, Page, Scene
from headwise_lab.microworld.relations import relations

FACTS, ASKED = 6, 3
LINKS = (("", ""), (":", ":"), ("", " has"), (" has", ""), (" has", " has"), (" is", " goes with the"))


def facts_of(scene: Scene) -> list[Fact]:
    """Facts of one relation with open values, about different names."""
    choices = [relation for relation in relations().values() if relation.open]
    relation = choices[int(scene.rng.random() * len(choices))]
    return [fact for fact in (scene.fact(relation) for _ in range(FACTS)) if fact]


@torch.no_grad()
def right(model: Model, encoder: PieceEncoder, text: str, value: str) -> float:
    ids = [*encoder.bos, *encoder.encode(text)]
    logits = model.hf(torch.tensor([ids])).logits[0, -1]
    return float(int(logits.argmax()) == encoder.encode(" " + value)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="world-6m")
    parser.add_argument("--items", type=int, default=50, help="texts per form, three questions each")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    model = load(str(bundled_model(chosen.model)) if chosen.model in bundled_names() else chosen.model)
    encoder = PieceEncoder(model.tokenizer)
    found: dict[str, list[float]] = {}
    for item in range(chosen.items):
        rng = np.random.default_rng([31, item])
        facts = facts_of(Scene(rng, "test"))
        page = Page(Scene(rng, "test"))
        for fact in facts:
            page.fact(fact)
        told = "".join(piece.text for piece in page.pieces).strip()
        for which in rng.permutation(len(facts))[:ASKED]:
            entity, _, value = facts[which]
            texts = {
                f"'{a}' then '{b}'": " ".join(f"{f.entity}{a} {f.value}." for f in facts) + f"\n{entity}{b}" for a, b in LINKS
            }
            texts["'' then question of a name"] = (
                " ".join(f"{f.entity} {f.value}." for f in facts) + f"\nQuestion: {entity}?\nAnswer:"
            )
            asked = "".join(piece.text for piece in page.question(int(which) + 1))
            texts["sentences then question"] = f"{told}\nQuestion:{asked}\nAnswer:"
            for form, text in texts.items():
                found.setdefault(form, []).append(right(model, encoder, text, value))
    shares = {form: round(float(np.mean(values)), 3) for form, values in found.items()}
    show(
        {
            "model": chosen.model,
            "chance": round(1 / FACTS, 3),
            "n": len(next(iter(found.values()))),
            **shares,
            "hardware": hardware(),
        },
        chosen.json,
    )


if __name__ == "__main__":
    main()
