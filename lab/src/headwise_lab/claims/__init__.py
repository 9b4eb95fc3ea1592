"""Claims that need the micro-world or the recipe of the lab models, registered by the entry point of `headwise-lab`."""
