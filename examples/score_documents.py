"""Which documents need retrieval heads? Score each by how much its loss rises when they are ablated (AttentionInfluence).

python examples/score_documents.py [MODEL]
"""

import sys
from pathlib import Path

import headwise as hw
from headwise.methods.influence.proxy import top_share
from headwise.methods.influence.scorer import AttentionInfluence

PAGE = Path(__file__).with_name("prompt.txt").read_text("utf-8").partition("\nQuestion")[0]
DOCUMENTS = {
    "a page of a book": PAGE,
    "its first half twice": " ".join([PAGE[: len(PAGE) // 2]] * 2),  # the second copy can be read from the first
}


def main(name: str = "lab-6m") -> None:
    model = hw.load(name)
    heads = top_share(hw.find(model, hw.Copy(lengths=[256], depths=2)), 0.1)
    scorer = AttentionInfluence(model, heads)
    for label, row in zip(DOCUMENTS, scorer.score(scorer.encode(list(DOCUMENTS.values()))), strict=True):
        print(f"{label:<22} loss {row.loss_base:.2f}, without {len(heads)} heads {row.loss_ref:.2f}, score {row.score:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
