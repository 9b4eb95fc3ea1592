"""Claims of method cards that need the micro-world; `headwise claims` finds them by entry point."""
