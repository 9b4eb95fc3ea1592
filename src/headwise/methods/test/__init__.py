"""Methods that test what heads do."""
