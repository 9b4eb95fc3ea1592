"""CompressKV (Lin et al. 2025, arXiv:2508.02401): semantic heads, layer errors, and the cache they shape."""
