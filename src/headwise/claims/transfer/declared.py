"""Claims about cross-transfer, registered before their numbers: which notions of a retrieval head name the same heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from headwise.claims.claim import Claim

OWN = {  # detector -> the task on which its heads are named by its paper
    "copy": "needle", "semantic": "needle", "query": "passages", "evidence": "passages", "mdqa": "passages", "proxy": "lookup", "gate": "lookup",
    "in-context": "swapped", "parametric": "memory", "task": "swapped", "retrieval": "swapped",
}  # fmt: skip
NAMES = tuple(OWN)
_DATA = (
    "6 % of all heads by each detector (mean of two halves of its items; proxy and gate: of two seeds); tasks, of which at least 5 items must "
    "count: 16 "
    "test needles, 24 paraphrased needles (answers with their full stop and line break), 16 questions over six passages, each in two orders, 24 "
    "look-ups in a table of random keys, 24 repeated word lists, 24 texts; items whose answer the whole model expects (at least 0.2 "
    "per token; texts: all); other needles than those that heads are found with; real models: detectors of the Atlas on two thirds of the subjects "
    "of known-facts-1209, tasks on the last third (48 with a swapped passage, 48 by heart); gates: 50 steps (lab models: 200)"
)
_TRIES = (
    "second try: in the first, on smollm2, the Atlas had 14 usable questions of NQ, the proxy task at its default size 2 right answers of 32, and no "
    "answer passed 1/2 per token over passages (they had no opening words) and in texts"
)
_CONTROLS = "3 layer-matched random sets per detector; halves of the detector's own items; overlap of the lists and overlap by chance"


def _claims(names: Sequence[str]) -> tuple[Claim, ...]:
    """In the order in which they are measured."""
    claim = partial(Claim, card="transfer", place="ours", data=_DATA, controls=_CONTROLS, tries=_TRIES)
    cross = partial(
        claim, rule=("share >= 0.5",), gate=("own_increase.low > 0",), control="random_share",
        metric="loss increase of the right answer (nats per token) without the one detector's heads, over that without the other's, on the other's "
        "task; 1: equally needed. halves_share: the same for heads found on half of the items (the least of two), the ceiling",
    )  # fmt: skip
    out: list[Claim] = []
    for name in names:
        task = OWN[name]
        out.append(claim(
            f"transfer.own.{name}", sentence=f"without the heads of the detector {name} the answers of its own task ({task}) become less likely than "
            "without random heads of the same layers", control="random", effect="increase",
            metric="loss increase of the right answer, nats per token; difference: minus that without random heads, paired by item",
            rule=("difference.low > 0",),
        ))  # fmt: skip
        for other in names:
            if other != name and (OWN[other] == task or "copy" in (name, other)):
                out.append(cross(
                    f"transfer.cross.{name}.{other}",
                    sentence=f"heads that {name} finds do at least half of what heads that {other} finds do for the task {OWN[other]}",
                ))  # fmt: skip
    return (
        *out,
        claim(
            "transfer.spares_text", sentence="plain text loses little without the copy heads", rule=("ratio <= 0.1",), effect="text_increase",
            control="needle_increase", gate=("needle_increase.low > 0",),
            metric="loss increase in nats per token on plain text; ratio: over that on needles",
        ),
        claim(
            "transfer.one_kind", sentence="all detectors name the same kind of head: each one's heads do at least half of any other's work",
            rule=("least_share >= 0.5",), effect="least_share", gate=("pairs >= 55",),
            metric="least share over all pairs of detectors that find heads (see the claims `cross`). Gate: these pairs, of 110",
        ),
    )  # fmt: skip


TRANSFER = _claims(NAMES)
