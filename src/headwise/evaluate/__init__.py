"""Metrics, seeded controls, statistics and adapters to other evaluation tools."""
