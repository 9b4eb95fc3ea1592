"""The ledger of the papers' claims: declared before their numbers, measured by one command, judged by one rule.

`claim` declares and judges, `experiment` measures several claims at once, `ledger` knows all experiments, `run` runs them, `results` reads what
was written. One package per method card holds its declarations and its measurements.
"""
