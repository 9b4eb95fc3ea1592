"""Decode while every step reads only some positions of the whole cache, which stays complete.

python examples/sparse_decoding.py [MODEL]
"""

import sys
from pathlib import Path

import headwise as hw
from headwise.caches import choosers

# A page of a book with one sentence about a cake, and a question about it.
PROMPT = Path(__file__).with_name("prompt.txt").read_text("utf-8")


def main(name: str = "lab-6m") -> None:
    model = hw.load(name)
    print(f"{'everything':<16}", model.generate(PROMPT, max_new_tokens=6).strip().partition("\n")[0])
    ways = {
        "query before": choosers.PreviousQuery(),  # what each layer would have read one step earlier
        "pages": choosers.Pages(size=8),  # bounds of the keys of every eight positions
        "the newest": choosers.Streaming(),  # a control: the question is there, the answer is not
    }
    for label, chooser in ways.items():
        with hw.sparse_decode(model, chooser, budget=64, recent=16) as cache:
            said = model.generate(PROMPT, max_new_tokens=6, cache=cache).strip().partition("\n")[0]
            print(f"{label:<16} {said:<24} reads {cache.report()['read_share']:.0%} of the positions")


if __name__ == "__main__":
    main(*sys.argv[1:])
