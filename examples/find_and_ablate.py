"""Find the retrieval heads of a model, then ask a question with and without them.

python examples/find_and_ablate.py [MODEL]
"""

import sys
from pathlib import Path

import headwise as hw

# A page of a book with one sentence about a cake, and a question about it.
PROMPT = Path(__file__).with_name("prompt.txt").read_text("utf-8")


def main(name: str = "lab-6m") -> None:
    model = hw.load(name)
    scores = hw.find(model, hw.Copy(lengths=[256], depths=2))
    heads = scores.top(8)
    print("strongest heads    ", ", ".join(f"{head} {scores[head]:.2f}" for head in heads))

    def said() -> str:
        return model.generate(PROMPT, max_new_tokens=6).strip().partition("\n")[0]

    print("unchanged          ", said())
    with hw.ablate(model, heads, mode="zero"):
        print("without these heads", said())
    weakest = scores.ranking()[-8:]
    with hw.ablate(model, weakest, mode="zero"):
        print("without the weakest", said())


if __name__ == "__main__":
    main(*sys.argv[1:])
