"""Methods that make the key-value cache smaller; one file per published method."""
