"""Errors that a user can mend: what is wrong, where, and what to do. The command line shows them as one line."""


class EpsamError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a defect of this program."""


class ConfigError(EpsamError):
    """A setting is unknown, wrong or contradicts another."""


class SlideError(EpsamError):
    """A slide cannot be opened or read."""


class AnnotationError(EpsamError):
    """An annotation file cannot be used."""


class DataError(EpsamError):
    """Patches, masks or a table are missing or do not fit together."""


class CheckpointError(EpsamError):
    """Weights are missing, damaged or belong to another model."""


class StateError(EpsamError):
    """A run cannot go on as it was left: changed settings, a lock, a missing stage."""
