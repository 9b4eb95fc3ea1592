"""Further claims of section 6 of the card `retrieval-head`: families `copy`, `copy-exact` and `heads-large`."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.retrieval_head.declared import CARD, FINDS, FOUND, NEEDLES, RECALL

_KNOWN = "lab-6m, the other lab models and smollm2 had been measured before this rule was written down"
_claim = partial(Claim, card=CARD)
_seen = partial(_claim, tries=_KNOWN)

MAPS = (
    _seen(
        "copy.concentrated", place="1", sentence="A minority of the heads has most of the copying.", gate=FINDS, rule=("over_share < 0.5", "gini "
        "> 0.5"),
        metric=f"over_share: share of heads with a copy score over 0.1; gini: Gini coefficient of the scores (0: all alike); {RECALL}", effect="gini",
        control="over_share", data=FOUND,
    ),
    _seen(
        "copy.untrained", place="1", sentence="An untrained copy of the model has no retrieval heads.", rule=("found == 0", "forced_over == 0"),
        effect="forced_max", control="trained_max", data=f"{FOUND.split(' (')[0]}; the shortest length only; forced: 8 needles",
        metric="found: heads over 0.1 by detection; forced_over: the same if the gold answer is taken as what the model says, so that no gate can "
        "hide a head; forced_max: their highest score",
        controls="the highest score of the trained model",
    ),
    _seen(
        "copy.frequency", place="5", sentence="No head copies in fewer runs than its score says.", rule=("below == 0",), data=FOUND,
        metric="below: heads whose activation frequency (share of solved runs in which they copy at least one token) is below their mean score; by "
        "definition none is: a check of the code",
    ),
    _seen(
        "copy.often_weak", place="5", sentence="Some head copies in nearly every run, and little.", gate=FINDS, rule=("heads >= 1",), data=FOUND,
        control="always_on", metric=f"heads: heads with a frequency over 0.9 and a score below 0.5; always_on: heads with frequency 1; {RECALL}",
    ),
    _seen(
        "copy.few_runs", place="7", sentence="Five runs find the heads that all runs find.", gate=("runs >= 50",), rule=("shared >= "
        "0.8",), data=FOUND,
        metric="shared: mean share of the final top 10 that the mean of 5 random runs has on top, with the middle 95 % of 200 draws; runs: solved "
        "runs",
        control="by_chance", controls="top 10 by chance; 1 and 20 runs", paper="5 runs: 14 to 15 of the top 16 (recomputed from released files)",
    ),
)  # fmt: skip

SWEEPS = (
    _seen(
        "copy.exact", place="2", sentence="Without its top 4 heads a model that answers all needles answers hardly any, without 4 random ones most.",
        gate=("whole > 0.95",), rule=("top < 0.2", "random > 0.7"), control="random", data=NEEDLES, controls="20 layer-matched draws",
        metric="exact answers, as a share of the prompts: of the whole model, without the top 4, without a layer-matched draw of 4 (mean of draws)",
    ),
    _seen(
        "copy.over", place="property 5", sentence="Without the heads over 0.1 recall is destroyed.", gate=FINDS, rule=("left < 0.5",),
        metric="left: recall without the top K over that of the whole model; K: the one of 1, 2, 4, 8, 16 nearest to the number of heads over 0.1; "
        f"{RECALL}",
        control="random_left", data=NEEDLES, controls="20 layer-matched draws",
    ),
    _seen(
        "copy.modes_near", place="3", sentence="The modes uniform and mean cost the same, within a few points.", gate=FINDS, rule=("apart <= 0.05",),
        effect="difference", control="zero", data=NEEDLES,
        metric="difference: recall without the top K in mode uniform minus that in mode mean, apart: its size; K as in heads.causal.recall; "
        f"{RECALL}",
    ),
    _seen(
        "copy.answer_scope", place="4", sentence="Ablating the answer rows alone keeps more than 80 % of the full loss.", gate=FINDS,
        rule=("kept > 0.8",), control="full_loss", data=NEEDLES, paper="only the last prompt token: -0.389 of -0.403 nats (Qwen2.5-1.5B, top 8)",
        metric="kept: loss of recall with the top K ablated from the last prompt token on, over that with them ablated at every position; K: the "
        f"first of 1, 2, 4, 8, 16 that halves recall there; {RECALL}",
    ),
)  # fmt: skip

_exact = partial(_claim, data="bundled needles, 256 tokens, depths 0.1, 0.5 and 0.9; whole: 4 needles, quick: 2")
EXACT = (
    _exact(
        "copy-exact.one_pass", place="8", sentence="One pass over the answer finds the hits of the token-by-token procedure.", gate=("hits >= 1",),
        metric="differing: (layer, head, step) whose hits differ from those of greedy decoding with written-out attention weights that reads the "
        "text anew for each token; other_tokens: answers that differ; float32. The speed is measured by benchmarks/detect.py",
        rule=("differing == 0", "other_tokens == 0"), control="hits",
    ),
    _exact(
        "copy-exact.spans", place="9", sentence="Answer spans are exact; the search of the released code is 1 to 3 tokens early on long answers.",
        metric="wrong: spans that do not read as their answer; search_early: tokens by which a search for a window with 90 % of the distinct "
        "tokens begins early, for answers of 11 to 40 distinct tokens",
        rule=("wrong == 0", "search_early_least >= 1", "search_early_most <= 3"), control="spans",
    ),
    _exact(
        "copy-exact.refused", place="9", sentence="A needle that cannot be placed is refused and never ends as a row of zeros.", rule=("accepted "
        "== 0",),
        metric="accepted: needles and lengths without a place that raise no error; search_finds: whether the search of the released code raises one",
        control="attempts",
    ),
    _exact(
        "copy-exact.control", place="9", sentence="Random heads are never among the chosen ones, exist in the model, and depend on the seed alone.",
        metric="shared: heads of a draw that are chosen ones; outside: heads that the model lacks; unlike: draws that a second call does not "
        "repeat; over 999 draws for 8 random heads. released_lets_through: chosen heads that the released test, which compares tuples with lists, "
        "lets through",
        rule=("shared == 0", "outside == 0", "unlike == 0"), control="released_lets_through", data="random scores in the model's shape",
    ),
    _exact(
        "copy-exact.bos", place="9", sentence="A prompt has exactly the beginning-of-text tokens of one text.", rule=("wrong == 0",),
        control="prompts", metric="wrong: prompts with another number of them than the tokenizer puts in front of one text",
    ),
    _exact(
        "copy-exact.restored", place="ours", sentence="After observation and ablation the model is bit for bit what it was.",
        control="changed_inside", metric="left_behind: largest difference of a logit before and after both blocks, changed_inside: least of the "
        "modes' largest ones inside them",
        rule=("left_behind == 0", "changed_inside > 0"), data="one prompt, 8 heads of the first layer, modes zero and uniform",
    ),
)  # fmt: skip

LARGE = (
    _claim(
        "heads-large.extractqa", place="headline", data="the authors' ExtractQA: questions about whole news articles",
        sentence="Questions about news articles need the retrieval heads.",
        metric="difference: loss of F1 without the top 50 heads minus that without 50 random ones, points", rule=("difference.low > 0",),
        paper="F1 56.7 → 47.5 (top 50) → 32.3 (top 100); random 55.7 and 55.4 (Mistral-7B-Instruct; the text says 33.6 at 100)",
    ),
    _claim(
        "heads-large.written_steps", place="headline", data="GSM8K, MMLU and MuSiQue, with and without written steps",
        sentence="Long chains of thought need the retrieval heads, answers alone do not.",
        metric="difference: loss of accuracy with written steps minus that of answers alone, both without the top 100 heads, points; GSM8K, MMLU "
        "and MuSiQue, the least of them",
        rule=("difference.low > 0",), paper="GSM8K with steps: about 45 to a few per cent; answer only: about 2; MMLU about 55, MuSiQue about 15",
    ),
)  # fmt: skip
