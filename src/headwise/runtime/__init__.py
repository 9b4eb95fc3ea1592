"""Running methods: detectors, needle questions, shared prefixes, greedy answers from drafts, contrastive decoding, passages read once, run directories."""
