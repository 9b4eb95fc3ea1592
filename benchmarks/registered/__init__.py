"""What is claimed about `smollm2` and by which rule it is judged: written down before the numbers were seen.

One row per claim. A claim whose gate fails is "not testable on this model"; otherwise it is "held" or "not held" by its rule. Rules,
splits and controls follow one protocol for all rows:

- heads are found on items that no test item shares; the wordings of detection and test needles differ;
- the heads that are compared with random ones are compared with layer-matched draws outside of the chosen heads (at least 20), with draws
  from any layer, with the weakest heads and with heads of nearly the same output norm, as far as the row's `controls` say;
- intervals are 95 % bootstrap intervals over items, differences are paired by item, tests are sign flips over items; the p-values of one
  family (the part of the key before the first dot) are corrected together (Benjamini and Hochberg) and compared with 0.05;
- weights: SmolLM2-135M-Instruct from a 4-bit GGUF file (Q4_1), dequantised; float32 on a CPU.
"""

from __future__ import annotations

from typing import Any

from headwise.stats.paired import benjamini_hochberg
from registered.atlas import ATLAS_CLAIMS
from registered.cache import CACHE_CLAIMS
from registered.claim import LEVEL, Claim, verdict
from registered.doubt import DOUBT_CLAIMS
from registered.heads import HEADS_CLAIMS
from registered.influence import INFLUENCE_CLAIMS
from registered.patch import PATCH_CLAIMS
from registered.rank import CAFE_CLAIMS, RANK_CLAIMS
from registered.rhio import READER_CLAIMS, RHIO_CLAIMS
from registered.steer import STEER_CLAIMS
from registered.trace import TRACE_CLAIMS
from registered.train import TRAIN_CLAIMS

CLAIMS: tuple[Claim, ...] = (
    *HEADS_CLAIMS, *RANK_CLAIMS, *CAFE_CLAIMS, *CACHE_CLAIMS, *INFLUENCE_CLAIMS, *ATLAS_CLAIMS, *STEER_CLAIMS, *PATCH_CLAIMS,
    *TRACE_CLAIMS, *DOUBT_CLAIMS, *TRAIN_CLAIMS, *RHIO_CLAIMS, *READER_CLAIMS,
)  # fmt: skip

__all__ = ["CLAIMS", "LEVEL", "Claim", "judged", "verdict"]


def judged(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results of one family by claim, with corrected p-values and verdicts.

    Args:
        found: Claim -> `gate` (bool) and either `holds`, or `difference` (mean, low, high), `p` and, if the mean
            must reach more than 0, `least`.

    Raises:
        ValueError: A claim was not registered.
    """
    unknown = found.keys() - {claim.key for claim in CLAIMS}
    if unknown:
        raise ValueError(f"not registered: {', '.join(sorted(unknown))}")
    tests = [key for key, each in found.items() if "p" in each and each["gate"]]
    corrected = dict(zip(tests, benjamini_hochberg([found[key]["p"] for key in tests]).tolist(), strict=True)) if tests else {}
    out = {}
    for key, each in found.items():
        holds = each.get("holds")
        if key in corrected:
            mean, needed = each["difference"][0], each.get("least", 0.0)
            holds = mean > 0 and mean >= needed and corrected[key] <= LEVEL
        out[key] = each | ({"p, corrected": round(corrected[key], 5)} if key in corrected else {})
        out[key]["verdict"] = verdict(bool(holds) if each["gate"] else None)
    return out
