"""One package per published method."""
