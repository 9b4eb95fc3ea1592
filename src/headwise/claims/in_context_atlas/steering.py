"""Function vectors and conflicts in one run."""

from __future__ import annotations

from headwise.claims.experiment import Bench, Measured
from headwise.claims.in_context_atlas import conflicts, function_vectors


def measure(bench: Bench) -> Measured:
    """Claims about function vectors and about conflicts of memory and passage."""
    vectors, tables = function_vectors.measured(bench)
    findings, curves = conflicts.measured(bench)
    return Measured(vectors | findings, tables | curves)
