"""Claims of RHIO on three lab models, which are judged together: answers in sentences, with an exact checker of support."""

from __future__ import annotations

from headwise.claims.claim import Claim
from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.rhio.declared import PAIRS, both, claimed

DATA = (
    "micro-world, answers of 2 sentences from 3 documents that partly contradict what the model knows; 800 questions to train on, 120 to judge "
    "(60 for answers without heads or with uniform ones), other wordings and words; mean of three models"
)
START = "start >= 0.5"
GATED = "Gate: support of `start` (the worst model counts)"

_claim = claimed("lab", DATA, several=True)


def _plain(key: str, place: str, sentence: str, metric: str, rule: tuple[str, ...], gate: tuple[str, ...] = (START,), **more: str) -> Claim:
    return _claim(key, place, sentence, metric, rule, gate, paired=False, **more)


CLAIMS = (
    *both("lab", DATA, "support", START, several=True),
    _claim("dose", "1", "without 10 % of the heads, the best by copy score, support falls to half or less",
           f"support with all heads minus without them; share_lost: that as a share of the former. {GATED}",
           ("loss > 0", "share_lost >= 0.5"), (START,), effect="chosen", control="control"),
    _plain("dose_control", "1", "random heads of the same layers cost under 5 points", f"loss of support, mean over models and 3 draws. {GATED}",
           ("loss < 0.05",)),
    _plain("errors", "2", "the headless model errs as an under-trained one does; swapped answers do not",
           "Jensen-Shannon distance (base 2) between the types of wrong sentences of swapped answers to the questions for training and of a model "
           "tuned in 30 steps, minus that "
           f"between the headless model and it; of the model where it is smallest. {GATED}", ("swap_minus_own > 0",), control="own"),
    _plain("alpha", "5", "a small alpha is best, and a large one hurts",
           "best mean support at alpha 0.1, 0.2 or 0.5 minus that at 0, and minus the best at 1 or 2; support at alpha 2 minus at 0",
           ("small_minus_none > 0", "small_minus_large >= 0", "two_minus_none < 0"), (START, *PAIRS), control="two_minus_none"),
    _claim("plausibility", "5", "a plausibility cut of 0.1 makes the fall at alpha 2 milder",
           "support at alpha 2 with the cut minus without it", ("difference > 0",), (START, *PAIRS), effect="chosen", control="control"),
    _plain("mode", "7", "zeroed heads fabricate; uniform ones mis-combine",
           f"share of fabricated among wrong sentences: zero minus uniform, of the model where it is smallest. {GATED}", ("zero_minus_uniform > 0",)),
    _plain("length", "9", "the gain is not one of brevity",
           "intercept of the gain in support (alpha 0.2 minus plain) regressed on the change in words, bootstrapped over questions; coverage: "
           "its change",
           ("intercept.low > 0", "coverage >= -0.05"), (START, *PAIRS), control="coverage"),
)  # fmt: skip

EXPERIMENTS = (
    Experiment(
        "rhio-lab", "The micro-world: faithful and unfaithful answers, tuning on both, contrast, on three lab models together (run it on world-6m)",
        CLAIMS, "headwise_lab.claims.rhio.measure:measure", Minutes(lab=45, real=None, quick_lab=8), needs="the extra train (peft, accelerate)",
    ),
)  # fmt: skip
