"""Metrics, seeded controls, paired statistics. Needs neither torch nor transformers."""
