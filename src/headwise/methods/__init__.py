"""One file per published method, grouped by what a user does with it."""
