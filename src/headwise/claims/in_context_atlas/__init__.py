"""Claims of the Atlas of in-context learning (card `in-context-atlas`)."""

from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.in_context_atlas.declared import EXACT, map_claims
from headwise.claims.in_context_atlas.declared_steer import COPY_CLAIMS, PATCH, STEER
from headwise.claims.in_context_atlas.declared_trace import OVERHEAD, TRACE

_HERE = "headwise.claims.in_context_atlas"

EXPERIMENTS = (
    Experiment(
        "atlas-exact", "Attribution, function vectors, patches and tracing do what their definitions say", EXACT, f"{_HERE}.exact:measure",
        Minutes(lab=0.1, real=1, quick_lab=0.1, quick_real=1), needs="float64 weights and kernels, up to 2 billion parameters",
    ),
    Experiment(
        "atlas-facts", "Head maps from known facts: what in-context, parametric, task and retrieval heads are needed for", map_claims("facts"),
        f"{_HERE}.maps:measure_facts", Minutes(lab=None, real=11, quick_real=11), data=("known-facts-1209",),
    ),
    Experiment(
        "atlas-nq", "Head maps from questions of NQ: what in-context, parametric, task and retrieval heads are needed for", map_claims("nq"),
        f"{_HERE}.maps:measure_nq", Minutes(lab=None, real=2), data=("nq-open-oracle",),
    ),
    Experiment(
        "steer", "Function vectors, and conflicts of memory and passage without chosen heads", STEER, f"{_HERE}.steering:measure",
        Minutes(lab=None, real=11, quick_real=8), data=("relations-lre", "known-facts-1209", "nq-open-oracle"),
    ),
    Experiment(
        "steer-copying", "Heads forced to copy a part of the prompt", COPY_CLAIMS, f"{_HERE}.copying:measure",
        Minutes(lab=0.2, real=3, quick_lab=0.2, quick_real=2),
    ),
    Experiment(
        "patch", "Clean outputs of in-context heads, put into a corrupted run", PATCH, f"{_HERE}.patching:measure",
        Minutes(lab=None, real=7, quick_real=7), data=("known-facts-1209",),
    ),
    Experiment(
        "trace", "Where answers were read: the probe beside its rivals", TRACE, f"{_HERE}.tracing:measure",
        Minutes(lab=None, real=47, quick_real=8), data=("nq-open-oracle", "hotpotqa-distractor", "popqa-1000"),
    ),
    Experiment(
        "trace-overhead", "What tracing costs while generating", OVERHEAD, f"{_HERE}.overhead:measure", Minutes(lab=0.1, real=0.6),
        alone=True,
    ),
)  # fmt: skip
