"""Was a token read from the context or remembered, and from where was it read? Kahardipraja et al. 2025, arXiv:2505.15807, sec. 6."""
