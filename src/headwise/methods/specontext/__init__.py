"""SpeContext (Xu et al. 2025, arXiv:2512.00722): the context is chosen before the model runs."""
