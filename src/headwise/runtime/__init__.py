"""Running methods: detectors, needle questions, shared prefixes, greedy answers from drafts, passages read once, run directories."""
