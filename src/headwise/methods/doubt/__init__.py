"""Doubt: heads that make a model take back a right answer (Singha Roy et al. 2025, arXiv:2510.22866), and what calms them."""
