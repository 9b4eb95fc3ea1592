"""Rank passages by the attention of a few heads, without generating a word.

python examples/rank_passages.py [MODEL]
"""

import sys

import headwise as hw

PASSAGES = [
    "The red door leads to the garden, which nobody has entered since spring.",
    "Ada has the key of the tower; she carries it on a string around her neck.",
    "A boat came back over the sea with salt, cloth and two letters.",
    "The mill is old, and its wheel has not turned for forty years.",
]


def main(name: str = "lab-6m") -> None:
    model = hw.load(name)
    scores = hw.find(model, hw.Copy(lengths=[256], depths=2))  # labelled queries find better ones: hw.Query(data=...)
    ranker = hw.Ranker(model, scores.top(8))
    for query in ("Who has the key of the tower?", "What came back over the sea?"):
        print(query)
        for place in ranker.rank(query, PASSAGES, top_k=2):
            print(f"  {place['score']:7.3f}  {PASSAGES[place['corpus_id']]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
