"""Claims that are measured on the micro-world."""
