"""Claims about sparse decoding, family `specontext`: written down on 2026-11-29 before their numbers; one needle had been tried by hand."""

from __future__ import annotations

from registered.claim import Claim

DECODE = "headwise bench decode smollm2 --heads COPY --choosers ... --budgets 128,512 --lengths 2048"
SPEED = "benchmarks/sparse.py"
TEXT = "64 teacher-forced steps of running text behind 2,048 tokens, 4 contexts; copy heads found on other texts"
ANSWERS = "needle, key-value and extraction contexts of 2,048 tokens"
CONTROLS = "streaming (first and last positions), random positions, oracle per layer"
FULL = "the full model's own score is at least 0.3"
BEATEN = "mean over contexts, paired: above 0 and corrected two-sided p at most 0.05"

SPECONTEXT_CLAIMS = (
    Claim(
        "specontext.per_layer_above_shared",
        "specontext 6.5",
        "a choice per layer and KV head keeps at least as much attention mass as one choice for all layers, and more so at the smaller budget",
        "",
        "mass(oracle) - mass(shared chooser) above 0 at both budgets, and larger at 128 than at 512",
        TEXT,
        CONTROLS,
        DECODE,
    ),
    Claim(
        "specontext.overlap",
        "specontext 6.6",
        "what is chosen at a step is mostly what was chosen at the step before",
        "",
        "overlap at least 0.8 at 512 of 2,048 on running text, for at least one chooser that is not streaming; chance is printed",
        TEXT,
        CONTROLS,
        DECODE,
    ),
    Claim(
        "specontext.mean_misses_needles",
        "issue 19 (ours)",
        "at equal budget the heads that retrieve answer needles where recency does not",
        FULL,
        f"needle recall of retrieval_heads minus streaming at 128, {BEATEN}",
        ANSWERS,
        CONTROLS,
        DECODE,
    ),
    Claim(
        "specontext.retrieval_mass",
        "issue 19 (ours)",
        "choosing by the retrieval heads' last step keeps more of their own mass than refreshing the mean of all heads does",
        "",
        f"mass at the retrieval heads, retrieval_heads minus refresh_every at 128, {BEATEN}",
        TEXT,
        CONTROLS,
        DECODE,
    ),
    Claim(
        "specontext.text_as_full",
        "issue 19",
        "some chooser that saves work leaves running text as it is at a quarter of the context",
        "",
        "perplexity at most 1.01 of full at 512 of 2,048, and greedy agreement at least 0.95",
        TEXT,
        CONTROLS,
        DECODE,
    ),
    Claim(
        "specontext.extraction",
        "issue 19 (ours)",
        "some chooser that saves work copies ten records as the full model does at a quarter of the context",
        FULL,
        "intersection over union at least 0.9 of the full model's at 512 of 2,048",
        ANSWERS,
        CONTROLS,
        DECODE,
    ),
    Claim(
        "specontext.speed_32k",
        "issue 19",
        "a step that reads 2,048 of 32,768 positions is three times as fast as full attention, choosing included",
        "",
        "vs_full_per_token at least 3 (random Llama, 8 layers, 512 wide)",
        "random keys and values; rounds in turn",
        "DynamicCache; a preallocated cache; streaming as the bound",
        SPEED,
    ),
    Claim(
        "specontext.speed_flat",
        "issue 19",
        "time per token does not grow with the text",
        "",
        "time at 32,768 over time at 8,192 within 0.9 to 1.1, budget 2,048",
        "random keys and values; rounds in turn",
        "the preallocated cache at both lengths",
        SPEED + " --only flat",
    ),
    Claim(
        "specontext.speed_smollm2",
        "issue 19",
        "on smollm2 behind 8,192 tokens, budget 512, a step reaches 80 % of what attention's share of a step allows",
        "",
        "share_of_bound at least 0.8",
        "random keys and values; rounds in turn",
        "streaming as the bound",
        SPEED + " --model smollm2 --length 7900 --budget 512",
    ),
    Claim(
        "specontext.bytes_moved",
        "issue 19",
        "a quarter of the budget, or less, has to be moved per step on running text",
        "",
        "moved_share at most 0.25 at 512 of 2,048 for a chooser that is not streaming",
        "64 greedy steps behind running text",
        "gathering the whole budget every step (1.0)",
        SPEED + " --only moved --model smollm2 --length 2048 --budget 512 --tokens 64",
    ),
)

DISTILLED = "benchmarks/distilled.py"
LAB_TEXT = "teacher-forced steps of running text (48 behind 1,024 tokens, 8 contexts, part of the text that was not trained on), budget 64"
LAB_NEEDLES = "8 needle contexts of 1,024 tokens, budget 64"

# Written down on 2026-11-29 after one look at two contexts of lab-6m with choosers trained for 300 steps, and before any number of this script.
DISTILLED_CLAIMS = (
    Claim(
        "distilled.draft_attends",
        "specontext 6.1",
        "a draft that was distilled from next-token probabilities attends where the model does, more than one trained on the true tokens",
        "",
        f"recall of tokens minus untrained, {BEATEN}",
        LAB_TEXT,
        "untrained draft head; random positions; oracle",
        DISTILLED,
    ),
    Claim(
        "distilled.teacher_above_labels",
        "specontext 6.1",
        "the model's probabilities teach a draft more about where to look than the true tokens do",
        "",
        f"recall of tokens minus labels, {BEATEN}",
        LAB_TEXT,
        "untrained draft head",
        DISTILLED,
    ),
    Claim(
        "distilled.attention_above_tokens",
        "issue 19 (ours)",
        "at equal steps a draft that is taught where the model attends chooses better than one taught what it says",
        "",
        f"mass of attention minus tokens, {BEATEN}",
        LAB_TEXT,
        "untrained draft head; oracle",
        DISTILLED,
    ),
    Claim(
        "distilled.input_matters",
        "specontext 6.2",
        "an embedding alone cannot find what stood behind an earlier copy; with the model's features it can",
        FULL,
        f"needle recall of emb+feat minus emb, {BEATEN}",
        LAB_NEEDLES,
        "emb with each choice dilated by one position",
        DISTILLED,
    ),
    Claim(
        "distilled.dilation_repairs",
        "specontext 6.2",
        "one more position behind each choice repairs most of what an embedding alone misses",
        FULL + ", and emb+feat answers more needles than emb",
        "needle recall of dilated emb at least half of the way from emb to emb+feat",
        LAB_NEEDLES,
        "emb; emb+feat",
        DISTILLED,
    ),
    Claim(
        "distilled.head_above_batch",
        "specontext 6.3",
        "a choice per KV head keeps more attention mass than one choice for all heads",
        "",
        f"mass of head-level minus batch-level, {BEATEN}",
        LAB_TEXT,
        "random positions; oracle",
        DISTILLED,
    ),
    Claim(
        "distilled.heads_are_interchangeable",
        "specontext 6.4",
        "which draft head serves which KV head does not matter",
        "",
        "mass with permuted heads (all rotations of the KV heads, mean) within 0.01 of the identity",
        LAB_TEXT,
        "batch-level",
        DISTILLED,
    ),
    Claim(
        "distilled.stretching_helps",
        "specontext 6.9",
        "a chooser trained on 128 tokens finds less behind 1,024, and stretched positions give some of it back",
        "",
        f"recall of stretched minus plain positions, trained on 128 tokens, {BEATEN}",
        LAB_TEXT,
        "the same chooser trained on 512 tokens",
        DISTILLED,
    ),
    Claim(
        "distilled.worth_its_weights",
        "issue 19 (ours)",
        "a distilled chooser keeps more than the rule that asks with the query of the step before, at the same number of positions read",
        "",
        f"on smollm2 at 128 of 2,048: mass over all heads and mass at the copy heads, distilled minus previous_query, both {BEATEN}",
        "64 steps of running text behind 2,048 tokens, 8 contexts; trained on other books, 1,024 tokens at a time",
        CONTROLS,
        DECODE,
    ),
    Claim(
        "distilled.needles",
        "issue 19 (ours)",
        "a distilled chooser answers needles where recency does not",
        FULL,
        f"on smollm2 at 128 of 2,048: needle recall of distilled minus streaming, {BEATEN}",
        "8 needle contexts of 2,048 tokens",
        CONTROLS,
        DECODE,
    ),
)
