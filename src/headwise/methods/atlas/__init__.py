"""The Atlas of in-context learning (Kahardipraja et al. 2025, arXiv:2505.15807): which heads read the context, which ones remember."""
