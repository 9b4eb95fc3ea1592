"""Claims of CompressKV and of the caches beside it (card `compresskv`)."""

from headwise.claims.compresskv.declared import ABLATION, ALLOCATION, CHOICE, COST, HEADS, LAYERS, SURVIVAL
from headwise.claims.compresskv.declared_tables import LOOKUPS, NEEDLES, TABLES, UUID_TABLES
from headwise.claims.experiment import Experiment, Minutes

_HERE = "headwise.claims.compresskv"
EXPERIMENTS = (
    Experiment(
        "compresskv-allocation", "Budgets by layer errors: sums, limits, order", ALLOCATION, f"{_HERE}.exact:measure_allocation",
        Minutes(lab=0.1, real=0.1, quick_lab=0.05, quick_real=0.1),
    ),
    Experiment(
        "compresskv-choice", "The positions that a cache holds, against a slow loop", CHOICE, f"{_HERE}.exact:measure_choice",
        Minutes(lab=0.1, real=0.1, quick_lab=0.05, quick_real=0.1),
    ),
    Experiment(
        "compresskv-cost", "Time of choosing positions and of a token afterwards", COST, f"{_HERE}.cost:measure",
        Minutes(lab=0.1, real=0.4), alone=True,
    ),
    Experiment(
        "compresskv-scores", "Semantic scores beside copy scores, and what extreme depths do to them", HEADS, f"{_HERE}.heads:measure_scores",
        Minutes(lab=0.5, real=7, quick_lab=0.2, quick_real=2),
    ),
    Experiment(
        "compresskv-ablation", "Without the strongest semantic heads, copy heads, or random ones", ABLATION, f"{_HERE}.heads:measure_ablation",
        Minutes(lab=0.7, real=14, quick_lab=0.3, quick_real=4),
    ),
    Experiment(
        "compresskv-layers", "Layer errors, their profiles, and budgets by them", LAYERS, f"{_HERE}.layers:measure",
        Minutes(lab=0.4, real=13, quick_lab=0.2, quick_real=2),
    ),
    Experiment(
        "compresskv-survival", "What is held of an answer, by who chooses", SURVIVAL, f"{_HERE}.survival:measure",
        Minutes(lab=1, real=4, quick_lab=0.5, quick_real=1),
    ),
    Experiment(
        "cache-needles", "Needles under every cache method and budget", NEEDLES, f"{_HERE}.tables:measure_needles",
        Minutes(lab=0.5, real=8, quick_lab=0.5, quick_real=4),
    ),
    Experiment(
        "cache-tables", "Tables of random keys under every cache method", TABLES, f"{_HERE}.tables:measure_tables",
        Minutes(lab=0.1, real=4, quick_lab=0.1, quick_real=4),
    ),
    Experiment(
        "cache-uuid-tables", "Tables of UUIDs under every cache method", UUID_TABLES, f"{_HERE}.tables:measure_uuid_tables",
        Minutes(lab=0.1, real=1, quick_lab=0.1, quick_real=1), data=("kv-retrieval",),
    ),
    Experiment(
        "cache-lookups", "Ten look-ups in one answer under every cache method", LOOKUPS, f"{_HERE}.tables:measure_lookups",
        Minutes(lab=0.1, real=2, quick_lab=0.1, quick_real=3),
    ),
)  # fmt: skip
