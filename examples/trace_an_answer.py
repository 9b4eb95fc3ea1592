"""Which passage made an answer likely? Leave each out; and, for models that have a probe, whether each token was read or remembered.

python examples/trace_an_answer.py [MODEL]
"""

import sys

import headwise as hw
from headwise.evaluation.leave_out import leave_one_out
from headwise.prompts.answers import answer_ids, prompt_of_documents
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage

PASSAGES = [
    Passage("The mill stands by the river and has not turned for forty years."),
    Passage("The secret ingredient of Aunt Perdita's ginger cake is ground juniper."),
    Passage("The statue in front of the town hall represents a sleeping ferryman."),
]


def main(name: str = "lab-6m") -> None:
    model = hw.load(name)
    encoder = PieceEncoder(model.tokenizer)
    prompt = prompt_of_documents(encoder, "What is the secret ingredient of Aunt Perdita's ginger cake?", PASSAGES)
    answer = answer_ids(encoder, prompt, "ground juniper")  # whoever wrote it
    for passage, drop in leave_one_out(model, prompt, answer, ["passage/1", "passage/2", "passage/3"]).items():
        print(f"{passage}  drop of the answer's log-probability without it {drop:+.2f} nats")
    try:
        for token in hw.trace_answer(model, prompt, answer).tokens:
            print(f"{model.tokenizer.decode([token.token]):<10} {token.label:<10} {token.probability:.2f}  {token.passage}")
    except hw.HeadwiseError as error:  # only some models come with a probe; headwise trace fit makes one
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
