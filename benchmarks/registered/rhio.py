"""Claims about RHIO, family `rhio`: written down on 2026-11-29 before their numbers.

The card's claims 1 to 9 on three lab models (`world-6m`, `world-6m-seed1`, `world-6m-qwen3`), and those that short answers can test on `smollm2`.
Every model is first tuned on references (`start`), because a base model writes off-task text; its retrieval heads (copy score, the best 10 %) are
taken away to make unfaithful answers, and all trainings go on from there.

Second try. In the first one on `smollm2` (100 steps of 4 answers; new tokens that began 0.1 standard deviations apart and learnt at the adapter's
rate) the model did not tell the tokens apart: correction 0.30 behind [POS], 0.28 behind [NEG], 0.56 after plain fine-tuning. The tokens now begin
apart and have a rate of their own, and steps were doubled in both sets. Chosen on 48 micro-world questions that no claim uses; there, too, 300
steps hardly parted the tokens.
"""

from __future__ import annotations

from registered.claim import Claim

RUN = "python benchmarks/rhio_real.py SET --data FOLDER --keep FOLDER --json"
DATA = {
    "lab": "micro-world, answers of 2 sentences from 3 documents that partly contradict what the model knows; 800 questions to train on, 120 "
    "to judge, other wordings and words; mean of three models",
    "smollm2": "NQ-open oracle, passages of 110 words: 300 questions to train on; of 400 others at most 40 that `start` answers from memory "
    "(resistance, agreement) and 80 that it does not (correction)",
}
CONTROLS = (
    "plain fine-tuning on the faithful answers of the same pairs, seen as often; unfaithful answers without random heads of the same layers, and "
    "references of other questions (swap); where they leave fewer pairs than the heads, these are seen more often"
)
TEST = "above 0, p by sign flips over questions corrected over the family"
SAME = {"lab": ", and the same sign in all three models", "smollm2": ""}


def _claim(name: str, key: str, number: str, sentence: str, rule: str, gate: str) -> Claim:
    return Claim(f"rhio.{name}.{key}", f"rhio {number}", sentence, gate, rule + SAME[name], DATA[name], CONTROLS, RUN.replace("SET", name))


def _both(name: str, measure: str, gate: str) -> tuple[Claim, ...]:
    """Claims that are tested on both sets."""
    pairs = f"{gate}; at least 100 pairs are left, with a gap of 10 points"
    rows = (
        ("tokens", "6.3", "The control tokens decide whether answers are faithful.",
         f"{measure} behind [POS] minus behind [NEG] at least 0.3, {TEST}"),
        ("tuning", "6.4", "Tuning on both kinds is better than plain fine-tuning.", f"{measure} at alpha 0 minus plain fine-tuning {TEST}"),
        ("decoding", "6.5", "Self-induced decoding adds to it.", f"{measure} at alpha 0.2 minus alpha 0 {TEST}"),
        ("whole", "5", "RHIO is better than plain fine-tuning.", f"{measure} at alpha 0.2 minus plain fine-tuning {TEST}"),
        ("not_random", "6.6", "Unfaithful answers without retrieval heads teach more than those without random heads.",
         f"{measure} at alpha 0.2, retrieval minus random heads, {TEST}; the random ones leave at least 40 pairs"),
        ("not_swap", "6.6", "Unfaithful answers without retrieval heads teach more than swapped ones.",
         f"{measure} at alpha 0.2, heads minus swap, {TEST}; swapped answers leave at least 40 pairs"),
        ("training_free", "6.8", "Contrast with the headless model needs no training to help.",
         f"{measure} of plain fine-tuning decoded against itself without the heads (entropy) minus greedy {TEST}"),
    )  # fmt: skip
    return tuple(_claim(name, key, number, sentence, rule, gate if key == "training_free" else pairs) for key, number, sentence, rule in rows)


LAB = "`start` has a mean support of at least 0.5 in every model"
ANSWERS = "`start` answers at least 0.3 of the correction questions right"
RHIO_CLAIMS = (
    *_both("lab", "support", LAB),
    _claim("lab", "dose", "6.1", "Without 10 % of the heads, the best by copy score, support falls to half or less.",
           f"support with all heads minus without them at least half of the former, {TEST}", LAB),
    _claim("lab", "dose_control", "6.1", "Random heads of the same layers cost under 5 points.",
           "mean over models and 3 draws of the loss below 0.05", LAB),
    _claim("lab", "errors", "6.2", "The headless model errs as an under-trained one does; swapped answers do not.",
           "Jensen-Shannon distance between the types of wrong sentences of the headless model and of one tuned in 30 steps, smaller than between "
           "swapped answers and that model, in every model", LAB),
    _claim("lab", "alpha", "6.5", "A small alpha is best, and a large one hurts.",
           "of alpha 0, 0.1, 0.2, 0.5, 1, 2 the best mean support is at 0.1, 0.2 or 0.5, and 2 is below alpha 0", LAB),
    _claim("lab", "plausibility", "6.5", "A plausibility cut of 0.1 makes the fall at alpha 2 milder.",
           f"support with it minus without it {TEST}", LAB),
    _claim("lab", "mode", "6.7", "Zeroed heads fabricate; uniform ones mis-combine.",
           "share of fabricated among wrong sentences, zero above uniform, in every model", LAB),
    _claim("lab", "length", "6.9", "The gain is not one of brevity.",
           "the intercept of the gain in support (alpha 0.2 minus plain) regressed on the change in words: lower end of the 95 % interval above 0; "
           "and coverage at most 0.05 lower", LAB),
    *_both("smollm2", "correction", ANSWERS),
    _claim("smollm2", "heads_away", "6.1", "Without its retrieval heads the model answers less from the passage than without random heads.",
           f"share of training questions answered right without random heads minus without retrieval heads {TEST}", ANSWERS),
    _claim("smollm2", "closed", "4", "Contrast with the question alone (CAD) helps.",
           f"correction of plain fine-tuning at alpha 0.5 minus greedy {TEST}", ANSWERS),
    _claim("smollm2", "resistance", "ours", "Who trusts passages more resists wrong ones less.",
           f"resistance of plain fine-tuning minus that of RHIO at alpha 0.2 {TEST}",
           "at least 20 known questions, 0.2 of them resisted after plain fine-tuning"),
)  # fmt: skip

_READER = "headwise bench reader smollm2 --data rand_test.jsonl --heads FILE --top 8 --items 219 --controls 20, FILE from headwise detect smollm2"
_EXPERTQA = "ExpertQA, test part of the random split: claims that were judged on evidence; heads from needles"
READER_CLAIMS = tuple(
    Claim(f"reader.smollm2.{key}", "rhio, evidence (2605.07209)", sentence, "at least 100 sentences of either kind", rule, _EXPERTQA,
          "20 draws of layer-matched random heads, shared words, length", _READER)
    for key, sentence, rule in (
        ("above_random", "Copying by retrieval heads of a small reader tells supported sentences better than random heads do.",
         "AUC of copying above that of all 20 draws (p of the rank 0.048)"),
        ("above_words", "And better than shared words.", "AUC of copying above that of shared words, whose value lies below its 95 % interval"),
        ("attention", "Attention to the documents tells them better than random heads do.",
         "AUC of attention above that of all 20 draws (p of the rank 0.048)"),
    )
)  # fmt: skip
