"""Head maps of the Atlas (in-context, parametric, task and retrieval heads), family `atlas`: one row per claim of the card's section 6 about maps."""

from __future__ import annotations

from registered.claim import Claim

ATLAS_SETS = {
    "nq": "NQ-open with the gold passage, answers swapped by type, a record counts if both answers are among the ten most probable",
    "facts": "known facts, cloze, each in a passage of four completed sentences, answers swapped inside a relation, a record counts if both answers "
    "are among the five most probable",
    "world": "people of the micro-world (lab models), passage of six facts, answer swapped, a record counts if both answers are the "
    "most probable ones",
}
ATLAS = "benchmarks/atlas_maps.py --data FOLDER --model MODEL --set SET --output FOLDER"
SPLIT = (
    "; a hash of the subject (else of the question) puts a record into the half that finds heads (up to 256) or the one that tests them (up to 32); "
    "NQ: plain wording for finding, instructed wording for the test"
)
GATE = "at least 50 records count for detection and at least 16 for the test"
DRAWS = (
    "50 layer-matched draws outside of the chosen heads; 20 for smollm2, with at most 96 records for detection and 24 for the test, which two "
    "cores can do in an hour"
)
LOSS = "log-probability of the answer's first token, K = 10 % of all heads, mode zero, scope all"
MORE = f"{LOSS}: mean of the draws minus the chosen heads, paired by record: mean above 0 and corrected p at most 0.05"
SPARES = f"{LOSS}: fall of the first minus fall of the second, paired by record: mean above 0 and corrected p at most 0.05"

# name -> (place on the card, claim, rule, controls)
ATLAS_ROWS = {
    "in_context_needed": ("6: D isolates in-context heads", "swapped answers need the heads with the largest D", MORE, DRAWS),
    "in_context_spares_memory": (
        "6: D isolates in-context heads",
        "without them swapped answers with the passage fall more than right answers without one",
        SPARES,
        DRAWS,
    ),
    "parametric_needed": (
        "6: D isolates parametric heads",
        "right answers without a passage need the heads with the smallest D",
        MORE,
        DRAWS,
    ),
    "parametric_spares_context": (
        "6: D isolates parametric heads",
        "without them right answers without a passage fall more than swapped answers with one",
        SPARES,
        DRAWS,
    ),
    "memory_comes_back": (
        "6: removing in-context heads brings back the gold answer",
        "with the swapped passage and without in-context heads the right answer is more probable than the swapped one in more records than without "
        "random heads",
        "share of records, chosen minus mean of the draws, paired: mean above 0 and corrected p at most 0.05",
        DRAWS,
    ),
    "retrieval_needed": (
        "6: retrieval heads, last query row",
        "swapped answers need the heads with the largest last-row relevance",
        MORE,
        DRAWS,
    ),
    "retrieval_spares_memory": (
        "6: retrieval heads, last query row",
        "without them swapped answers with the passage fall more than right answers without one",
        SPARES,
        DRAWS,
    ),
    "task_needed": ("3.3", "swapped answers need the heads with the largest task relevance (all rows)", MORE, DRAWS),
    "all_rows_are_shallow": (
        "6: all-rows rho_ret on a shallow net",
        "relevance over all rows puts heads of earlier layers on top than relevance of the last row does",
        "mean layer of the top 10 %: at least one layer lower",
        "",
    ),
    "rules_separate": (
        "6: AttnLRP separates more than plain gradient",
        "D spreads wider with altered gradients (attnlrp and gim each) than with plain ones",
        "largest minus smallest D, share-normalized, at most 64 records: larger than with `gradient`",
        "",
    ),
    "two_groups": (
        "JuICE (2503.10996)",
        "heads that contribute most to answers from the passage are others than those that contribute most to answers from memory",
        "at most half of the top 10 % by contribution are common",
        "overlap by chance; overlap of two halves of the records",
    ),
    "needed_without_overlap": (
        "JuICE (2503.10996)",
        "in-context heads that are not among the strongest contributors to memory are still needed by swapped answers",
        MORE,
        "the draws for the in-context heads",
    ),
    "reliable": (
        "evidence rule 10",
        "two halves of the records give the same maps",
        "mean correlation of random halves at least 0.8 for D, task (all rows) and retrieval (last row)",
        "",
    ),
}

ATLAS_CLAIMS = tuple(
    Claim(f"atlas.{name}.{data}", f"in-context-atlas {card}", told, GATE, rule, held + SPLIT, controls, ATLAS)
    for data, held in ATLAS_SETS.items()
    for name, (card, told, rule, controls) in ATLAS_ROWS.items()
)
