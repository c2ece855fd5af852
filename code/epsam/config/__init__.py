"""Settings of a run: the schema, reading them, describing them."""
