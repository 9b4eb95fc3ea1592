"""Methods that find heads."""
