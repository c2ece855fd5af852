"""Pictures: one palette, panels of patches, sheets, charts."""
