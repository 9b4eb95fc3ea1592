"""Sufficiency: outputs of chosen heads from a clean run in a corrupted one, on the real model."""

from __future__ import annotations

from registered.claim import Claim

CARD = "issue 18 item 3; evidence.md, rule 7; in-context-atlas.md, section 3.2"
RUN = "python benchmarks/patch_real.py --data FOLDER --model smollm2 --context-heads FILE --copy-heads FILE --keep FOLDER --json"
MAIN, FEW = 26, 8  # heads
KS = (4, FEW, 16, MAIN)
DRAWS, ITEMS, LEAST_ITEMS = 20, 40, 24
DATA = (
    "known facts as sentences to be continued, behind a passage of four completed sentences; clean: the passage holds the right answer, corrupted: "
    "another one in its place (same type, same number of tokens, mentions at the same positions; others dropped and counted). No record, and no "
    "subject, on which the in-context heads were found; wording and draw of the passages differ from those of detection. A record counts if the "
    "right answer's first token is the most probable one behind the clean passage (also behind a passage of other sentences) and the swapped one's "
    f"behind the corrupted passage; the first {ITEMS} of a seeded order. Outcome: restored share of the log-odds of the two first tokens at the last "
    "row, (patched - corrupted) / (clean - corrupted), per record; last: outputs of the last row only, all: of all rows"
)
CONTROLS = (
    f"{DRAWS} seeded draws of layer-matched random heads outside of the chosen ones, as many copy heads (found on needles), all heads (1 by "
    "construction), no head (0)"
)
GATE = f"at least {LEAST_ITEMS} records count, and all heads restore 1 (within 0.01)"
TOLD = {"last": "at the last row", "all": "at all rows"}


def _patch(key: str, sentence: str, rule: str) -> Claim:
    return Claim(f"patch.{key}", CARD, sentence, GATE, rule, DATA, CONTROLS, RUN)


def _claims(rows: str) -> tuple[Claim, ...]:
    told = TOLD[rows]
    return (
        _patch(f"half.{rows}", f"Clean outputs of {MAIN} in-context heads {told} restore at least half of the log-odds.",
               "lower end of the 95 % interval of the mean restored share at or above 0.5"),
        _patch(f"above_random.{rows}", f"They restore more than as many random heads of their layers ({told}).",
               "restored share minus that of the mean random draw: at least 0.2, sign flips over records, corrected p at most 0.05"),
        _patch(f"few.{rows}", f"{FEW} heads restore less than half ({told}).",
               "upper end of the 95 % interval of the mean restored share below 0.5"),
        _patch(f"flips.{rows}", f"With {MAIN} heads {told} the clean answer becomes the most probable one, with random heads it does not.",
               "share of records whose most probable token is the clean answer's, minus that of the mean random draw: at least 0.3, sign flips, "
               "corrected p at most 0.05"),
        _patch(f"above_copy.{rows}", f"{MAIN} in-context heads restore more than {MAIN} copy heads ({told}).",
               "difference of the restored shares above 0, sign flips, corrected p at most 0.05"),
        _patch(f"reverse.{rows}", f"The other way round, against memory: outputs from the corrupted run restore the swapped answer ({told}).",
               f"{MAIN} heads put into the clean run; lower end of the 95 % interval of the mean share at or above 0.5"),
    )  # fmt: skip


PATCH_CLAIMS = (
    *_claims("last"), *_claims("all"),
    _patch("own_answer", "What is restored is this answer, and not just that the swapped one is gone.",
           f"restored share of {MAIN} heads at the last row minus that with their outputs from the clean run of another record (another answer): at "
           "least 0.2, sign flips, corrected p at most 0.05"),
    _patch("elsewhere", "The outputs carry over from another prompt with the same answer (same sentence, other passage around it).",
           f"{MAIN} heads at the last row; lower end of the 95 % interval of the mean restored share at or above 0.5"),
)  # fmt: skip
