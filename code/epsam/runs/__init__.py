"""Runs: records of stages, the lock, what results depend on, starting over."""
