"""Function vectors (Kahardipraja et al. 2025, arXiv:2505.15807): extract them from a prompt, search their scale, keep them in a file."""
