"""Claims of the card `specontext` about sparse decoding and distilled choosers, registered before their numbers.

Two families: `specontext` (which positions a step reads, slots, memory, speed) and `distilled` (draft heads). The measured ones were written
down on 2026-11-29, after one needle and two contexts of `lab-6m` had been tried by hand; those about slots and memory plan were tests before.
"""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.copy_heads import COPY_HEADS

_specontext = partial(Claim, card="specontext")
_RIVALS = "streaming (first and last positions), random positions, oracle per layer"
_FULL = "full_score >= 0.3"
_BEATEN = ("difference > 0",)
_FEW = "registered with 4 contexts, of which no p-value can be at or below 0.05; 8 are measured"
_FOUND = "; found by reading the code once more, after numbers of smollm2 and of lab models had been seen"
_SHORTER = "models with fewer positions: 1,024 or 512 tokens, a sixteenth, but at least 40, and a quarter of them"
_TEXT = (
    f"the last 64 of 2,048 tokens of running text, teacher-forced, 8 contexts, budgets 128 and 512 ({_SHORTER}), which hold the first 4 and the "
    f"last 32 positions; the 8 strongest of the {COPY_HEADS}"
)
_ANSWERS = "8 needle contexts and 8 with ten records to be copied, of 2,048 tokens, budgets 128 and 512 (models with fewer positions: as for text)"
_decode = partial(_specontext, tries=_FEW, controls=_RIVALS)

EXACT = (
    _specontext(
        "specontext.slots_exact", place="7",
        sentence="attention from slots into which only the difference is moved equals attention from keys and values that are gathered anew",
        metric="largest difference of an attention output (float32) over the largest output; rows of keys or values in slots that are not, bit for "
        "bit, those of the cache; control: the difference if a step read the slots of the step before",
        rule=("largest_difference <= 1e-6", "wrong_rows == 0"), control="stale_difference",
        data="200 steps over random tokens, budget 48, random positions at every step, from below the budget to 224 tokens; tokens are taken back",
        controls="the slots of the step before",
    ),
    _specontext(
        "specontext.full_budget_exact", place="7",
        sentence="a budget that holds the whole text is full attention, bit for bit",
        metric="logits that differ from those of full attention, all steps together; control: the same at budget 48",
        rule=("different == 0",), control="different_when_sparse", data="200 steps over random tokens", controls="budget 48, random positions",
    ),
)  # fmt: skip

PLANNER = (
    _specontext(
        "specontext.planner_best", place="8",
        sentence="the plan keeps as many layers on the device as any that fits",
        metric="share of random cases in which the plan has as many layers on the host as the best of all plans that keep equation 7; control: "
        "share of these cases in which some layers, but not all, must leave", rule=("share_equal == 1",), control="share_between",
        data="500 random budgets, memories and requests of random lengths above the budget, for the model's shape",
        controls="equation 7, written out, for every number of layers",
    ),
    _specontext(
        "specontext.planner_printed", place="8",
        sentence="algorithm 1 as printed, without the factor 4 in the term of the layers on the host, gives lengths that do not fit",
        metric="share of the printed thresholds (one layer or more on the host) that need more than the memory; control: the same of corrected "
        "ones",
        rule=("share_too_long == 1",), control="share_too_long_corrected",
        data="500 random budgets, memories and numbers of requests, for the model's shape", controls="the corrected thresholds",
    ),
    _specontext(
        "specontext.planner_ramp", place="8", paper="45.3 to 9.7 tokens/s from 120k x 4 (all on the GPU) to 128k x 4 (all on the CPU)",
        sentence="with growing length the time of a step rises in small steps where layers leave one by one, and at once where all leave together",
        metric="largest rise of the simulated time of a step from one length to the next, as a share of the whole rise, over the same where all "
        "layers leave together", rule=("jump_ratio <= 0.5",), control="jump_of_all",
        data="bytes over bandwidth (device 2 TB/s, host 25 GB/s, 80 % of the positions stay), 8 requests, budget 2,048, at and behind every "
        "threshold",
        controls="all layers leave when they no longer fit",
    ),
)  # fmt: skip

DECODE = (
    _decode(
        "specontext.per_layer_above_shared", place="5", paper="slightly below ClusterKV at 512, as full attention from 1,024 on (LongBench, plot)",
        sentence="a choice per layer and KV head keeps at least as much attention mass as one choice for all layers, and more so at the smaller "
        "budget",
        metric="attention mass (share): each KV head by its query of the step before (previous_query without corrections) minus one choice by the "
        "attention of all heads at the step before; the least over both budgets, and its growth from the larger to the smaller budget, paired by "
        "context; control: oracle", rule=("difference > 0", "growth > 0"), control="oracle", data=_TEXT,
        tries=f"{_FEW}. Until 2026-11-30 the oracle, which knows the step itself, stood against choosers that do not{_FOUND}",
    ),
    _decode(
        "specontext.overlap", place="6", paper="above 0.8 (budgets 32 to 1,024, figure 6b)",
        sentence="what is chosen at a step is mostly what was chosen at the step before",
        metric="share of the positions chosen at a step that were chosen at the step before, at the larger budget, of the best chooser that is no "
        "control and chooses anew at every step; control: the same by chance", rule=("overlap >= 0.8",), control="by_chance", data=_TEXT,
        tries=f"{_FEW}. Until 2026-11-30 refresh_every counted, which changes its choice at every eighth step only{_FOUND}",
    ),
    _decode(
        "specontext.mean_misses_needles", place="ours",
        sentence="at equal budget the heads that retrieve answer needles where recency does not",
        metric="share of needles answered, at the smaller budget: retrieval_heads minus streaming, paired by context; control: streaming",
        gate=(_FULL,), rule=_BEATEN, tested=True, effect="chosen", control="control", data=_ANSWERS,
    ),
    _decode(
        "specontext.retrieval_mass", place="ours",
        sentence="choosing by the retrieval heads' last step keeps more of their own mass than choosing by the last step of all heads does",
        metric="attention mass at the retrieval heads (share), at the smaller budget: their last step minus that of all heads, paired by context; "
        "control: all heads", rule=_BEATEN, tested=True, effect="chosen", control="control", data=_TEXT,
        tries=f"{_FEW}. Until 2026-11-30 the rival was refresh_every, whose full steps count as a mass of 1{_FOUND}",
    ),
    _decode(
        "specontext.text_as_full", place="headline", paper="LongBench as full attention from a budget of 1,024 on (plot)",
        sentence="some chooser that saves work leaves running text as it is at a quarter of the context",
        metric="perplexity over that of full attention, and share of steps with the same most probable token, at the larger budget, of the best "
        "chooser that reads less than full attention; control: agreement of streaming", rule=("perplexity_ratio <= 1.01", "agreement >= 0.95"),
        control="control", data=_TEXT,
    ),
    _decode(
        "specontext.extraction", place="ours",
        sentence="some chooser that saves work copies ten records as the full model does at a quarter of the context",
        metric="intersection over union of the records written and asked for, over that of full attention (taken as fixed), at the larger budget, "
        "of the best chooser that reads less than full attention; control: streaming",
        gate=(_FULL,), rule=("share_of_full >= 0.9",), control="control",
        data=_ANSWERS,
    ),
    _decode(
        "specontext.bytes_moved", place="headline", paper="about 20 % of the positions move per step (figure 6b)",
        sentence="a quarter of the budget, or less, has to be moved per step on running text",
        metric="share of the budget that is moved to slots per step, at the larger budget, of the chooser that moves least, is no control and "
        "chooses anew at every step; control: what gathering the whole budget moves",
        rule=("moved_share <= 0.25",), control="gathered",
        data="64 greedy steps behind running text, contexts as for text",
        tries=f"{_FEW}. Until 2026-11-30 refresh_every counted, which changes its choice at every eighth step only{_FOUND}",
    ),
)  # fmt: skip

_timed = partial(
    _specontext, place="headline", data="random keys and values; rounds in turn, medians of the ratios of one round; one request"
)
SPEED = (
    _timed(
        "specontext.speed_32k", paper="2.48 x at [32k, 2k] with one request (figure 10a)",
        sentence="a step that reads 2,048 of 32,768 positions is three times as fast as full attention, choosing included",
        metric="time per token of full attention (DynamicCache) over that of the fastest chooser, random Llama (8 layers, 512 wide); control: the "
        "same of streaming, which costs nothing to choose",
        rule=("vs_full >= 3",), control="bound",
        controls="a preallocated cache; streaming as the bound",
    ),
    _timed(
        "specontext.speed_flat",
        sentence="time per token does not grow with the text",
        metric="time per token at 32,768 positions over that at 8,192, budget 2,048, of the chooser that is fastest at 32,768; control: the "
        "preallocated cache", rule=("growth >= 0.9", "growth <= 1.1"), control="preallocated", controls="the preallocated cache at both lengths",
    ),
    _timed(
        "specontext.speed_smollm2",
        sentence="in a whole model behind 7,900 tokens, budget 512, a step reaches 80 % of what attention's share of a step allows (registered "
        "for smollm2)",
        metric="time per token of streaming, which costs nothing to choose, over that of the fastest chooser; control: full attention over "
        "streaming",
        rule=("share_of_bound >= 0.8",), control="bound", controls="streaming as the bound",
    ),
)  # fmt: skip

_LAB_TEXT = (
    "the last 48 of 1,024 tokens of running text (models with fewer positions: 512), teacher-forced, 8 contexts, from the twentieth of the text "
    "that was not trained on, budget 64 (of 512: 40); 300 steps of training (real models: 100) over 2 texts of 512 tokens each"
)
_LAB_NEEDLES = (
    "8 needle contexts of 1,024 tokens (models with fewer positions: 512) of the novels that were trained on, budget 64 (of 512: 40); trained as "
    "for text"
)
_distilled = partial(_specontext, tries="one look at two contexts of lab-6m with 300 steps")
_tested = partial(_distilled, rule=_BEATEN, tested=True, effect="chosen", control="control")

DISTILLED = (
    _tested(
        "distilled.draft_attends", place="1",
        sentence="a draft that was distilled from next-token probabilities attends where the model does, more than one that was not trained",
        metric="recall of the positions with most attention: `tokens` minus untrained, paired by context; control: untrained",
        data=_LAB_TEXT, controls="untrained draft head; random positions; oracle",
    ),
    _tested(
        "distilled.teacher_above_labels", place="1",
        sentence="the model's probabilities teach a draft more about where to look than the true tokens do",
        metric="recall of the positions with most attention: `tokens` minus `labels`, paired by context; control: `labels`",
        data=_LAB_TEXT, controls="untrained draft head",
    ),
    _tested(
        "distilled.attention_above_tokens", place="ours",
        sentence="at equal steps a draft that is taught where the model attends chooses better than one taught what it says",
        metric="attention mass (share): `attention` minus `tokens`, paired by context; control: `tokens`",
        data=_LAB_TEXT, controls="untrained draft head; oracle",
    ),
    _tested(
        "distilled.input_matters", place="2",
        sentence="an embedding alone cannot find what stood behind an earlier copy; with the model's features it can",
        metric="share of needles answered: emb+feat minus emb, paired by context; control: emb", gate=(_FULL,),
        data=_LAB_NEEDLES, controls="emb with each choice dilated by one position",
    ),
    _distilled(
        "distilled.dilation_repairs", place="2",
        sentence="one more position behind each choice repairs most of what an embedding alone misses",
        metric="share of needles answered: (dilated emb minus emb) over the gap, which is emb+feat minus emb (taken as fixed)", control="gap",
        gate=(_FULL, "gap > 0"), rule=("repaired >= 0.5",), data=_LAB_NEEDLES, controls="emb; emb+feat",
    ),
    _tested(
        "distilled.head_above_batch", place="3", paper="more attention weight and a higher hit rate at budgets 32 to 2,048 (figure 5)",
        sentence="a choice per KV head keeps more attention mass than one choice for all heads",
        metric="attention mass (share): head-level minus batch-level, paired by context; control: batch-level",
        data=_LAB_TEXT, controls="random positions; oracle",
    ),
    _distilled(
        "distilled.heads_are_interchangeable", place="4",
        sentence="which draft head serves which KV head does not matter",
        metric="attention mass (share): mean over all rotations of the KV heads minus the identity, paired by context; control: batch-level minus "
        "identity",
        rule=("change >= -0.01", "change <= 0.01"), control="batch_change", data=_LAB_TEXT, controls="batch-level",
    ),
    _tested(
        "distilled.stretching_helps", place="9",
        sentence="a chooser trained on 128 tokens finds less behind 1,024, and stretched positions give some of it back",
        metric="recall of the positions with most attention, trained on 128 tokens: stretched minus plain positions, paired by context; control: "
        "trained on 512 tokens minus plain", data=_LAB_TEXT + "; or 8 texts of 128", controls="the same chooser trained on 512 tokens",
    ),
)  # fmt: skip

_BOOKS = "500 steps of 1,024 tokens over 30 other books, copy heads' attention counts half; test: "
TRAINED = (
    _specontext(
        "distilled.worth_its_weights", place="ours", rule=("mass > 0", "mass_heads > 0"), tested=True, effect="chosen", control="control",
        sentence="a distilled chooser keeps more than the rule that asks with the query of the step before, at the same number of positions read",
        metric="attention mass (share) over all heads, and at the copy heads, at 128 of 2,048 positions: distilled minus previous_query, paired by "
        "context; the larger p of both; control: mass of previous_query over all heads",
        data=_BOOKS + "the last 64 of 2,048 tokens of running text, 8 contexts (models with fewer positions: 1,024 or 512, a sixteenth of them, "
        "but at least 40)",
        controls=_RIVALS,
    ),
    _specontext(
        "distilled.needles", place="ours", gate=(_FULL,), rule=_BEATEN, tested=True, effect="chosen", control="control",
        sentence="a distilled chooser answers needles where recency does not",
        metric="share of needles answered at 128 of 2,048: distilled minus streaming, paired by context; control: streaming",
        data=_BOOKS + "8 needle contexts of 2,048 tokens (models with fewer positions: as for text)", controls=_RIVALS,
    ),
)  # fmt: skip
