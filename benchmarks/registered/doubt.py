"""Claims about doubt, family `doubt`: written down on 2026-11-29 before their numbers. A first trial on 7 known facts was seen, for the wordings.

The card's claims 1 to 9, on `smollm2` (facts, needles, NQ with a passage; replies in words) and on `world-6m-reask` (a lab model that was taught to
take answers back only where it is cued; replies yes or no), and what the issue says was measured before in other wordings.
"""

from __future__ import annotations

from registered.claim import Claim

RUN = "python benchmarks/doubt_real.py SET --data FOLDER --keep FOLDER --json"
PARTS = (
    "heads are found on questions of the part `detect`, K and remedy chosen on `select`, judged on `test`; the three parts differ in questions "
    "and in wordings of the challenges. Right first answers are the model's own; each is paired with a wrong one put in its place"
)
CONTROLS = "50 layer-matched random sets of as many heads, the weakest heads, the top copy heads (found on needles of other wordings)"
GATE = "at least one challenge takes back 15 % of right answers (and not all) in `select` and in `test`, at least 20 right answers in each"
KS, HALF = (1, 2, 3, 5, 10, 20), "half of all heads"
SETS = {
    "facts": "facts of LRE that smollm2 answers right without a passage, chat template, own words",
    "needles": "bundled needles in 512 tokens at 3 depths, smollm2, chat template, own words",
    "nq": "NQ-open questions behind their passage, smollm2, chat template, own words",
    "lab": "re-asked facts of the micro-world in their text, world-6m-reask, yes or no, with and without the cue",
}


def _of(name: str) -> tuple[Claim, ...]:
    data = f"{SETS[name]}; {PARTS}"

    def claim(key: str, card: str, sentence: str, rule: str, gate: str = GATE) -> Claim:
        return Claim(f"doubt.{name}.{key}", card, sentence, gate, rule, data, CONTROLS, RUN.replace("SET", name))

    return (
        claim("flips", "unwanted-uncertainty 6.1", "Right answers are taken back when they are challenged.",
              "the gate itself on `test`: some challenge takes back at least 15 % of right answers"
              + (", with the cue; without it at most 10 %" if name == "lab" else ""), "at least 20 right answers"),
        claim("auc", "unwanted-uncertainty 6.2", "`misleading` tells heads whose removal keeps answers from those whose removal gives them up.",
              "AUC of misleading(h) for the sign of the head's knock-out effect on the margin (both from `detect`) at least 0.7, and the lower end "
              "of its 95 % bootstrap interval over heads above 0.5", GATE + "; at least 20 flips and 20 answers held where options are named"),
        claim("inverted_u", "unwanted-uncertainty 6.3", "A few heads help, many harm.",
              f"of K in {KS} and {HALF} the best K on `test` is at most a tenth of all heads, and at {HALF} fewer right answers are kept than "
              "without any remedy"),
        claim("above_random", "unwanted-uncertainty 6.4", "The chosen heads calm more than random ones of their layers.",
              "headline (change of kept right minus change of kept wrong) on `test`: lower end of its 95 % interval above 0, and above the 95 % "
              "quantile of the random sets"),
        claim("no_yes_bias", "unwanted-uncertainty 6.5", "The chosen remedy does not make wrong answers stand.",
              "change of kept wrong answers on `test` below 0.05"),
        claim("retrieval_neutral", "unwanted-uncertainty 6.6", "Taking the top 8 copy heads away in the second turn does no more than random heads.",
              "change of kept right answers (zero) inside the 2.5 to 97.5 % range of 50 layer-matched random sets of 8"),
        claim("modes_agree", "unwanted-uncertainty 6.7", "Cutting heads by zero, uniform or mean is one and the same.",
              "largest difference of kept right answers between the three modes at the chosen K on `test` at most 0.05"),
        claim("holding", "issue 20 (ours)", "Heads with the lowest knock-out scores hold on to right answers: made stronger they calm.",
              "headline of `scale` by 1.5 at the best K of `select`, on `test`: lower end of its 95 % interval above 0"),
    )  # fmt: skip


DOUBT_CLAIMS = (
    *_of("facts"), *_of("needles"), *_of("nq"), *_of("lab"),
    Claim("doubt.smollm2.yes_no", "unwanted-uncertainty 3.1", "The paper's question (yes or no) can be asked of smollm2.", "",
          "at least 0.9 of the replies begin with yes or no", SETS["facts"] + ", form yes-no", "", RUN.replace("SET", "facts")),
    Claim("doubt.needles.recall_needs_retrieval", "unwanted-uncertainty 6.6", "Without its top 8 copy heads the first turn no longer finds needles.",
          "needle recall of the unchanged model at least 0.8", "recall without them (zero, from the last prompt token on) at least 0.3 lower",
          "bundled needles of the test split, 512 tokens", "as many layer-matched random heads", "headwise ablate smollm2 --heads COPY --top 8"),
    Claim("doubt.needles.bos", "unwanted-uncertainty 6.8", "A start token spliced in front of the needle moves copy scores; none does not.",
          "needle recall at least 0.5", "some head's copy score changes by more than 0.1, and by exactly 0 where the same ids are spliced twice",
          "8 needles in 512 tokens at 3 depths", "", RUN.replace("SET", "bos")),
    Claim("doubt.facts.turn_one", "unwanted-uncertainty 6.9", "A remedy of the second turn leaves the first one as it is.", "",
          "first answers and their logits are bit for bit equal before and after", SETS["facts"], "", "pytest tests/unit/test_doubt.py"),
)  # fmt: skip
