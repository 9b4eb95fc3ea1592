"""Ranking passages by attention."""
