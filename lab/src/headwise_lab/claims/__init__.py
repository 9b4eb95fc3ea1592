"""Claims of the ledger that are measured on the micro-world, one module per method card."""
