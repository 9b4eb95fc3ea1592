"""The micro-world, the lab models and the recipe that trained them: a small controlled world for headwise."""
