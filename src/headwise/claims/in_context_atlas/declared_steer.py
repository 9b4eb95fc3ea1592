"""Claims of the card `in-context-atlas` about interventions, registered before their numbers: function vectors, forced copying, conflicts, patches.

Numbers of heads are those of the first model, which has 270; others get the same shares (`found_heads.share`).
"""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.copy_heads import COPY_HEADS

CARD = "in-context-atlas"
_claim = partial(Claim, card=CARD)

RELATIONS = ("verb past tense", "adjective comparative", "word first letter", "product by company", "adjective antonym")
_TASKS = (
    f"LRE relations {', '.join(RELATIONS)}; a prompt of ten solved questions (`Q: subject`, `A: object`) and an eleventh subject gives the vectors; "
    "of the subjects that stand in no example 2 choose heads and 4 the scale (none of them is reported), 20 at most are reported, asked without "
    "examples; seed 0"
)
_SECOND = (
    "second try: in the first, with lines `subject -> object`, whose subject is the first token of the bare prompt, and with 16 heads, past tenses "
    "had "
    "given 0.04 (0.96 with examples); wording and number of heads were chosen on relations that are not reported"
)
_TASK_HEADS = (
    "27 of 270 heads (10 %) by the effect of their vector alone on the 2 choosing prompts; random: 20 draws of the same layers, same prompt and scale"
)
_PASSING = "; gate: relations of whose reported prompts the whole model answers at least half with ten examples"
_COPYING = (
    "40 stretches of about 60 words of the bundled novels, one of ten made-up titles at a random sentence end, no question; 10 generated tokens; "
    "unigram recall of the title; 11 of 270 heads (4 %) by copy score (needles of the half `detect`)"
)
_FACTS = (
    "LRE relations with at least 8 objects; facts that the model completes right from the bare sentence; the sentence with another object of the "
    "relation stands in front of it; at most 60 of 25 candidates per relation; in-context and parametric heads by D on 96 known facts; seed 0"
)
_NQ = "NQ gold passages with swapped answers (by type, seed 0), at most 50 of those up to 220 tokens, scope answer"
_CONFLICT_DRAWS = "5 draws of layer-matched random heads per K, mode zero, scope all"
_FOLLOWS = "; gate: share of records in which the whole model gives the passage's answer, and usable records"
_TESTED = partial(_claim, tested=True, control="random")

TASK_CLAIMS = (
    _TESTED(
        "steer.task_vectors", place="5, headline", sentence="function vectors of few heads do a task without examples",
        metric="share right with vectors minus that of the mean random draw, all passing relations together" + _PASSING, rule=("difference >= 0.3",),
        gate=("relations >= 3",), paper="88 to 95 % against 8 to 18 % with random heads", data=_TASKS, controls=_TASK_HEADS, tries=_SECOND,
    ),
    _claim(
        "steer.task_vectors.none", place="issue 17", sentence="without vectors the task is not done", tested=True, control="none",
        metric="share right with vectors minus without, all passing relations together" + _PASSING, rule=("difference >= 0.4",),
        gate=("relations >= 3",),
        paper="0 to 24-27 of 40 (issue 17)", data=_TASKS, controls="the whole model, no vectors", tries=_SECOND,
    ),
    _claim(
        "steer.task_vectors.antonyms", place="issue 17", sentence="antonyms are harder than past tenses",
        metric="lower end of the interval of past tenses minus upper end of that of antonyms, shares right with vectors; gate: shares right with "
        "ten examples",
        rule=("gap > 0",), effect="past_tenses", control="antonyms", gate=("past_tenses_shown >= 0.5", "antonyms_shown >= 0.5"),
        paper="antonyms to 10 of 40 (issue 17)", data=_TASKS, controls=_TASK_HEADS, tries=_SECOND,
    ),
    _claim(
        "steer.task_vectors.one_prompt", place="3.6", sentence="one prompt is as good as the average over five", control="average",
        metric="share right with vectors of one prompt minus that with the average of five prompts, all passing relations together" + _PASSING,
        rule=("difference >= -0.1",), gate=("relations >= 3",), data=_TASKS,
        controls="average over five prompts, that one among them, same heads and scale",
        tries=_SECOND,
    ),
    _TESTED(
        "steer.parametric_vectors", place="5, headline", sentence="a remembered attribute can be carried to another subject",
        metric="share that says the source's object with vectors minus that of the mean random draw; gate: pairs of known facts",
        rule=("difference >= 0.1",),
        gate=("pairs >= 40",), paper="35 to 44 % against 7 to 13 % with random heads",
        data="known facts (sentences); pairs of one relation with different objects; 13 of 270 heads (5 %) by effect on 4 pairs, scale on 8 others, "
        "at "
        "most 60 reported; seed 0",
        controls="20 draws of random heads of the same layers",
    ),
)  # fmt: skip
COPY_CLAIMS = (
    *(
        _TESTED(
            f"steer.copying.{how}", place="6: forced copying of another value; 5, headline",
            sentence=f"retrieval heads can be made to copy a part of the prompt ({told})",
            metric="recall of the title with the heads minus that of the mean random draw, paired by stretch", rule=("difference >= 0.5",),
            paper="93 % (16 % with random heads), Llama-3.1-8B; 87 to 97 against 4 to 16 over three models", data=_COPYING,
            controls="20 draws of random heads of the same layers, same stretches",
        )
        for how, told in (("two_step", "scores raised"), ("mix", "weights moved"))
    ),
    _claim(
        "steer.copying.boost", place="3.7", sentence="without the first step copying gets worse",
        metric="recall of two_step minus that with beta 0, paired by stretch; gate: recall of two_step", rule=("difference > 0",), tested=True,
        gate=("two_step >= 0.2",), control="no_boost", data=_COPYING, controls="beta 0, factor 2",
    ),
)  # fmt: skip
_CONFLICT = partial(_claim, gate=("follows >= 0.5", "records >= 50"), data=_FACTS, controls=_CONFLICT_DRAWS)
_CONFLICT_NQ = partial(
    _claim, gate=("follows >= 0.5", "records >= 30"), data=_NQ, controls="5 draws of layer-matched random heads, K = 26 of 270, mode zero",
    place="table 13", tested=True, control="random",
)  # fmt: skip
CONFLICT_CLAIMS = (
    _CONFLICT(
        "steer.conflict.passage_falls", place="5 (open-book recall)", sentence="without the in-context heads the passage is no longer followed",
        metric="passage's answers at K = 26 of 270 (9.6 %): share of the mean random draw minus that without the heads" + _FOLLOWS,
        rule=("difference >= 0.3",), tested=True, control="random",
    ),
    _CONFLICT(
        "steer.conflict.memory_returns", place="table 13", sentence="without in-context heads remembered answers come back",
        metric="remembered answers at K = 5 of 270 (2 %) minus those of the mean random draw" + _FOLLOWS, rule=("difference > 0",), tested=True,
        control="random", paper="9.5 to 24.1 % at 2 % of the heads (Llama-3.1-8B)",
    ),
    _CONFLICT(
        "steer.conflict.passage_stays", place="table 13", sentence="without parametric heads the passage is followed at least as often",
        metric="passage's answers at K = 5 of 270 parametric heads minus those of the whole model" + _FOLLOWS, rule=("change.high >= 0",),
        control="follows", paper="68.7 to 72.5 % at 2 % of the heads (Llama-3.1-8B)",
    ),
    _CONFLICT(
        "steer.conflict.not_monotonic", place="8", sentence="remembered answers do not come back more and more as heads go",
        metric="of K = 5, 16, 26 of 270: highest share of remembered answers minus that at 26" + _FOLLOWS, rule=("above_last > 0",), control="last",
        paper="9.5/24.1/24.3/35.1/33.1/16.9 % at 0 to 100 heads (Llama-3.1-8B)",
    ),
    _CONFLICT_NQ(
        "steer.conflict_nq.passage_falls", sentence="the same on Wikipedia passages: the swapped answer is no longer given",
        metric="passage's answers at K = 26 of 270: share of the mean random draw minus that without the heads" + _FOLLOWS,
        rule=("difference >= 0.3",),
    ),
    _CONFLICT_NQ(
        "steer.conflict_nq.memory_returns", sentence="the same on Wikipedia passages: remembered answers come back",
        metric="remembered answers at K = 26 of 270 minus those of the mean random draw" + _FOLLOWS, rule=("difference > 0",),
        paper="9.5 to 24.1 % at 2 % of the heads (Llama-3.1-8B)",
    ),
)  # fmt: skip
STEER = (*TASK_CLAIMS, *CONFLICT_CLAIMS)

# ---- sufficiency: outputs of chosen heads from a clean run in a corrupted one

MAIN, FEW = 26, 8  # of 270 heads
DRAWS, ITEMS = 20, 40
TOLD = {"last": "at the last row", "all": "at all rows"}
_PATCH = partial(
    _claim, place="3.2; evidence rule 7 (ours)", gate=("records >= 24", "every_head_error <= 0.01"),
    data="known facts as sentences to be continued, behind a passage of four completed sentences; clean: the passage holds the right answer, "
    "corrupted: "
    "another one in its place (same type, same number of tokens, mentions at the same positions; others dropped and counted). No record, and no "
    "subject, on which the in-context heads were found; wording and draw of the passages differ from those of detection. A record counts if the "
    "right answer's first token is the most probable one behind the clean passage (also behind a passage of other sentences) and the swapped one's "
    f"behind the corrupted passage; the first {ITEMS} of a seeded order. Outcome: restored share of the log-odds of the two first tokens at the last "
    "row, (patched - corrupted) / (clean - corrupted), per record; last: outputs of the last row only, all: of all rows",
    controls=f"{DRAWS} seeded draws of layer-matched random heads outside of the chosen ones, as many {COPY_HEADS}; all heads (1 by "
    "construction), no head (0)",
)  # fmt: skip
_COUNTED = "; gate: records that count, and how far all heads are from restoring 1"


def _patch_claims(rows: str) -> tuple[Claim, ...]:
    told = TOLD[rows]
    tested = partial(_PATCH, tested=True)
    return (
        _PATCH(
            f"patch.half.{rows}", sentence=f"clean outputs of {MAIN} of 270 in-context heads {told} restore at least half of the log-odds",
            metric="mean restored share" + _COUNTED, rule=("share.low >= 0.5",), control="random",
        ),
        tested(
            f"patch.above_random.{rows}", sentence=f"in-context heads restore more than as many random heads of their layers ({told})",
            metric="restored share minus that of the mean random draw" + _COUNTED, rule=("difference >= 0.2",), control="random",
        ),
        _PATCH(
            f"patch.few.{rows}", sentence=f"{FEW} of 270 in-context heads restore less than half ({told})", metric="mean restored share" + _COUNTED,
            rule=("share.high < 0.5",), control="random",
        ),
        tested(
            f"patch.flips.{rows}",
            sentence=f"with {MAIN} of 270 heads {told} the clean answer becomes the most probable one, with random heads it does not",
            metric="share of records whose most probable token is the clean answer's, minus that of the mean random draw" + _COUNTED,
            rule=("difference >= 0.3",), control="random",
        ),
        tested(
            f"patch.above_copy.{rows}", sentence=f"{MAIN} of 270 in-context heads restore more than {MAIN} copy heads ({told})",
            metric="difference of the restored shares" + _COUNTED, rule=("difference > 0",), control="copy",
        ),
        _PATCH(
            f"patch.reverse.{rows}",
            sentence=f"the other way round, against memory: outputs from the corrupted run restore the swapped answer ({told})",
            metric=f"mean restored share, {MAIN} of 270 heads put into the clean run" + _COUNTED, rule=("share.low >= 0.5",), control="there",
        ),
    )  # fmt: skip


PATCH = (
    *_patch_claims("last"), *_patch_claims("all"),
    _PATCH(
        "patch.own_answer", sentence="what is restored is this answer, and not just that the swapped one is gone",
        metric=f"restored share of {MAIN} of 270 heads at the last row minus that with their outputs from the clean run of another record (another "
        f"answer)"
        + _COUNTED, rule=("difference >= 0.2",), tested=True, control="stranger",
    ),
    _PATCH(
        "patch.elsewhere", sentence="the outputs carry over from another prompt with the same answer (same sentence, other passage around it)",
        metric=f"mean restored share, {MAIN} of 270 heads at the last row" + _COUNTED, rule=("share.low >= 0.5",), control="there",
    ),
)  # fmt: skip
