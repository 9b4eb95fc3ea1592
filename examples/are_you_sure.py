"""Ask a model questions, then ask whether it is sure: how many right answers does it take back, and what does it say?

python examples/are_you_sure.py [MODEL]
"""

import sys

import headwise as hw


def main(name: str = "lab-6m") -> None:
    model = hw.load(name)
    # Needles hidden in short texts; every right answer is challenged, and so is a wrong one in its place.
    found = hw.measure_doubt(model, hw.DoubtQuestions(lengths=[128], depths=1, challenges="sure,suggestion", max_new_tokens=8))
    print(f"{len(found.answered)} of {len(found.asked.items)} questions are answered right at first")
    for row in found.rates():
        kept, taken, margin = row["kept"][0], row["flips"][0], row["margin"][0]  # each has its 95 % interval behind it
        print(f"{row['challenge']:<11}{row['arm']:<6}kept {kept:4.0%}  taken back {taken:4.0%}  margin {margin:+.1f} nats")
    for wanted in ("kept", "suggested", "other", "incoherent"):  # one reply of each kind
        for one, reply, outcome in zip(found.dialogues, found.replies, found.outcomes, strict=True):
            if outcome == wanted:
                print(f"{outcome:<11}{one.asked[-1].said!r}, challenged ({one.challenge.name}): {reply!r}")
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
