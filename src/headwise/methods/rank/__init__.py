"""Ranking passages by attention, and answering from the ones that count."""
