"""The embedded demo: drawn slides in Camelyon's format and the small SAM that goes with them."""
