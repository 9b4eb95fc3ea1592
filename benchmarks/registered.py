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

from dataclasses import dataclass

LEVEL = 0.05  # of corrected p-values


@dataclass(frozen=True)
class Claim:
    """One claim, registered before its number.

    Attributes:
        key: Family and name, such as `rank.query_above_all.hotpotqa`.
        card: Method card and number of the claim there.
        sentence: What is claimed, in our words.
        gate: What the unablated model must do, so that the claim can be tested at all; empty: nothing.
        rule: Metric, direction and threshold.
        data: Data and splits.
        controls: What stands beside the chosen heads.
        command: What measures it.
    """

    key: str
    card: str
    sentence: str
    gate: str
    rule: str
    data: str
    controls: str
    command: str


CLAIMS: tuple[Claim, ...] = ()


def verdict(holds: bool | None) -> str:
    """The three verdicts; None: the gate failed."""
    return "not testable on this model" if holds is None else "held" if holds else "not held"
