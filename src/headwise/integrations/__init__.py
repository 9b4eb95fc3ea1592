"""headwise inside other packages. Nothing here is imported by the rest of headwise, and no other package is imported before it is asked for."""
