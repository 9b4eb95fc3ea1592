"""Pages: one HTML file each that works offline. `shell` is the document, `parts` what it is made of, `charts` the pictures."""
