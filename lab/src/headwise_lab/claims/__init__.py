<<<<<<< HEAD
<<<<<<< HEAD
<<<<<<< HEAD
"""Claims of the ledger that need the micro-world or the recipes of the lab models, one module per method card."""
=======
"""Claims that need the micro-world or the recipe of the lab models, registered by the entry point of `headwise-lab`."""
>>>>>>> claims-influence
=======
"""Claims that are measured on the micro-world."""
>>>>>>> claims-atlas
=======
"""Claims of method cards that need the micro-world; `headwise claims` finds them by entry point."""
>>>>>>> claims-doubt
