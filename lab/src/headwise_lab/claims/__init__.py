"""Claims of the ledger that need the micro-world or the recipes of the lab models, one module per method card."""
