"""Claims of the card `in-context-atlas` about attribution and head maps, registered before their numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headwise.claims.claim import Claim

CARD = "in-context-atlas"
_LOOSER = (
    "the bound was 1e-6 until a first run on four texts of lab-6m, which showed that float32 is on the way (1.5e-6 for matrices, 9e-7 for own "
    "vectors)"
)
_claim = partial(Claim, card=CARD)

# ---- what holds by construction, checked in float64 on a copy of the model

_TEXTS = "8 stretches of about 24 words of the bundled novels; a float64 copy of the model"
_CARD_1, _CARD_2 = "6: modified gradients are right", "6: kernel-free wrapper = matrix version"
EXACT = (
    _claim(
        "relevance.cp_lrp_sums_to_logit", place=_CARD_1, sentence="relevance by CP-LRP at the embeddings sums to the explained logit",
        metric="largest |sum - logit| / |logit| over the texts, rule cp_lrp; gate: embedding tables beside that of the tokens (learned positions "
        "take a share)",
        rule=("error <= 1e-6",), gate=("other_embeddings == 0",), control="leak", paper="equal to 6 digits (random Llama, Qwen2, Qwen3)",
        data=_TEXTS + " whose biases are set to 0", controls="rule attnlrp, which is not conservative",
    ),
    _claim(
        "relevance.attnlrp_leaks", place=_CARD_1, sentence="relevance by AttnLRP does not sum to the logit: the softmax takes a share",
        metric="least |sum - logit| / |logit| over the texts, rule attnlrp; gate as for CP-LRP",
        rule=("least_leak > 1e-3",), gate=("other_embeddings == 0",), effect="leak", control="error", paper="sum 60 to 90 % of the logit",
        data=_TEXTS + " whose biases are set to 0", controls="rule cp_lrp, which is conservative",
    ),
    _claim(
        "relevance.weights_as_matrix", place=_CARD_2,
        sentence="relevance of attention weights, found without a matrix, is A * dL/dA of eager attention",
        metric="largest difference over layers, heads and tokens, as a share of the largest value; rule gradient, positive parts of pairs, all rows; "
        "eager attention takes its softmax in float32",
        rule=("difference <= 1e-5",), tries=_LOOSER, data=_TEXTS, controls="eager attention whose matrices are kept",
    ),
    _claim(
        "relevance.weights_sum_to_head", place=_CARD_2,
        sentence="the signed relevance of a head's weights sums to that of its output, by every rule (A * dA = A * (g.v))",
        metric="largest difference over texts, layers and heads, as a share of the largest value; the worst of the rules",
        rule=("difference <= 1e-6",), data=_TEXTS, controls="relevance of outputs, times the share that a product hands on",
    ),
    _claim(
        "relevance.leaves_the_model", place="4, 7 (LXT patches classes and has no undo)",
        sentence="after attribution the model gives the same bits as before",
        metric="largest difference of logits before and after the blocks of all rules", rule=("difference == 0",), data=_TEXTS,
        controls="the same pass before",
    ),
    _claim(
        "steer.own_vectors", place="3.6", sentence="function vectors put into the prompt that they come from, at scale 1, change nothing",
        metric="largest difference of log-probabilities of the next token (nats), all heads; vectors are kept in float32",
        rule=("difference <= 1e-5",), tries=_LOOSER, control="at_scale_2",
        data=_TEXTS, controls="the same vectors at scale 2",
    ),
    _claim(
        "steer.copying.without_strength", place="3.7", sentence="forced copying without strength (beta 0 and factor 1, or weight 0) changes nothing",
        metric="largest difference of log-probabilities of the next token (nats), all heads, both ways", rule=("difference <= 1e-6",),
        control="with_strength", data=_TEXTS, controls="both ways with their usual strength",
    ),
    _claim(
        "patch.every_head", place="ours", sentence="outputs of all heads at the last row make the next token that of the run they come from",
        metric="largest difference of log-probabilities of the next token (nats) from the clean run; control: without a patch",
        rule=("difference <= 1e-6",), control="without", data=_TEXTS + ", in pairs of equal length and last token", controls="no patch",
    ),
    _claim(
        "trace.same_afterwards", place="ours", sentence="tracing while generating and afterwards in one pass give the same numbers",
        metric="largest difference of features and of scores of positions, as a share of the largest value; both are float32",
        rule=("difference <= 1e-5",), tries=_LOOSER,
        data=_TEXTS + "; 8 generated tokens; up to 16 heads, evenly spread, with weight 1", controls="one pass over the finished answer",
    ),
)  # fmt: skip

# ---- head maps: one row per claim, for every set of records

SETS = {
    "nq": "NQ-open with the gold passage, cut to 60 words around the answer, answers swapped by type, a record counts if both answers are among the "
    "ten most probable",
    "facts": "known facts, cloze, each in a passage of four completed sentences, answers swapped inside a relation, a record counts if both answers "
    "are among the five most probable",
    "world": "people of the micro-world (lab models), passage of six facts, answer swapped, a record counts if both answers are the "
    "most probable ones",
}
_SPLIT = (
    "; a hash of the subject (else of the question) puts a record into the half that finds heads (lab models: up to 256, others: 96) or the one that "
    "tests them (up to 32; 24); last-row relevance needs the swapped answer alone, so its records may be others; NQ: plain wording for finding, "
    "instructed wording for the test"
)
_DRAWS = "50 layer-matched draws outside of the chosen heads for lab models, 20 for others"
_LOSS = "log-probability of the answer's first token (nats), K = 10 % of all heads, mode zero, scope all"
_GATE = "; gate: records that count for detection and for the test"
_RULE = ("difference > 0",)
_IN_CONTEXT, _PARAMETRIC = "6: D isolates in-context heads", "6: D isolates parametric heads"
_RETRIEVAL = "6: retrieval heads, last query row"


def map_claims(name: str) -> tuple[Claim, ...]:
    """All claims about head maps, on one of `SETS`."""
    claim = partial(_claim, gate=("found >= 50", "tested >= 16"), data=SETS[name] + _SPLIT)
    needed = partial(
        claim, metric=f"{_LOSS}: mean of the draws minus the chosen heads, paired by record; control: what random heads cost{_GATE}", rule=_RULE,
        tested=True, control="random_costs", controls=_DRAWS,
    )  # fmt: skip
    spares = partial(
        claim, metric=f"{_LOSS}: fall of the first minus fall of the second, paired by record; control: the second fall{_GATE}", rule=_RULE,
        tested=True, control="second_fall", controls=_DRAWS,
    )  # fmt: skip
    return (
        needed(
            f"atlas.in_context_needed.{name}", place=_IN_CONTEXT, sentence="swapped answers need the heads with the largest D",
            paper="20 (100) in-context heads cost 13.86-63.84 (44.26-68.66) points of recall, random heads about 0 (Llama-3.1-8B, range over "
            "settings)",
        ),
        spares(
            f"atlas.in_context_spares_memory.{name}", place=_IN_CONTEXT,
            sentence="without in-context heads swapped answers with the passage fall more than right answers without one",
        ),
        needed(
            f"atlas.parametric_needed.{name}", place=_PARAMETRIC, sentence="right answers without a passage need the heads with the smallest D",
            paper="20 (100) parametric heads cost 13.86-63.84 (44.26-68.66) points of recall (Llama-3.1-8B, range over settings)",
        ),
        spares(
            f"atlas.parametric_spares_context.{name}", place=_PARAMETRIC,
            sentence="without parametric heads right answers without a passage fall more than swapped answers with one",
        ),
        claim(
            f"atlas.memory_comes_back.{name}", place="6: removing in-context heads brings back the gold answer",
            sentence="with the swapped passage and without in-context heads the right answer is more probable than the swapped one in more records "
            "than without random heads",
            metric=f"share of records, chosen minus mean of the draws, paired{_GATE}", rule=_RULE, tested=True, control="random", controls=_DRAWS,
            paper="recall of the gold answer 9.5 to 24.1 % (20 heads removed, Llama-3.1-8B)",
        ),
        needed(
            f"atlas.retrieval_needed.{name}", place=_RETRIEVAL, sentence="swapped answers need the heads with the largest last-row relevance"),
        spares(
            f"atlas.retrieval_spares_memory.{name}", place=_RETRIEVAL,
            sentence="without retrieval heads swapped answers with the passage fall more than right answers without one",
        ),
        needed(
            f"atlas.task_needed.{name}", place="3.3", sentence="swapped answers need the heads with the largest task relevance (all rows)"),
        needed(
            f"atlas.needed_without_overlap.{name}", place="JuICE (2503.10996)",
            sentence="in-context heads that are not among the strongest contributors to memory are still needed by swapped answers",
            gate=("found >= 50", "tested >= 16", "left_out >= 1"),
            metric=f"{_LOSS}: mean of the draws minus the chosen heads, paired by record; control: what random heads cost{_GATE}; heads that were "
            f"left "
            "out for the next ones, as they are among those contributors",
            tries="until 2026-11-30 the draws were those for the in-context heads, and no head had to be left out; found by reading the code once "
            "more",
        ),
        *_of_maps(claim, name),
    )  # fmt: skip


def _of_maps(claim: Callable[..., Claim], name: str) -> tuple[Claim, ...]:
    """Claims that need no ablation."""
    return (
        claim(
            f"atlas.all_rows_are_shallow.{name}", place="6: all-rows rho_ret on a shallow net",
            sentence="relevance over all rows puts heads of earlier layers on top than relevance of the last row does",
            metric=f"mean layer of the top 10 % by the last row minus that by all rows{_GATE}", rule=("layers_earlier >= 1",), control="last_row",
        ),
        claim(
            f"atlas.rules_separate.{name}", place="6: AttnLRP separates more than plain gradient",
            sentence="D spreads wider with altered gradients (attnlrp and gim each) than with plain ones",
            metric=f"largest minus smallest D, share-normalized, at most 64 records: that of the rule minus that of gradient{_GATE}",
            rule=("gim_wider > 0", "attnlrp_wider > 0"), effect="attnlrp_wider", control="gradient",
        ),
        claim(
            f"atlas.two_groups.{name}", place="JuICE (2503.10996)",
            sentence="heads that contribute most to answers from the passage are others than those that contribute most to answers from memory",
            metric=f"share of the top 10 % by contribution that is common{_GATE}", rule=("in_common <= 0.5",), control="by_chance",
            controls="overlap by chance; overlap of two halves of the records",
        ),
        claim(
            f"atlas.reliable.{name}", place="evidence rule 10", sentence="two halves of the records give the same maps",
            metric=f"mean correlation of random halves, the least of D, task (all rows) and retrieval (last row){_GATE}", rule=("least >= 0.8",),
        ),
    )  # fmt: skip
