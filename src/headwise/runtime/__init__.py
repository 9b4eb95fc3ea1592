"""Running methods: detectors, needle questions, shared prefixes, drafts, contrastive decoding, passages read once, run directories."""
