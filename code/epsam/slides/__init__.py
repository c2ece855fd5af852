"""Reading slides and their annotations. Nothing is imported here: the command line needs a few names and no reader."""
