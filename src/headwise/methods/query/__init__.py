"""Query heads (Zhang et al. 2025, arXiv:2506.09944): finding heads that look at what answers a question, and ranking with them."""
