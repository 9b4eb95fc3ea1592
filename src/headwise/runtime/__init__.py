"""Running methods: detectors, needle questions, shared prefixes, greedy answers from drafts, contrast of two branches, passages, run directories."""
