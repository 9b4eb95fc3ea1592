"""Retrieval heads (Wu et al. 2024, arXiv:2404.15574): the copy score."""
