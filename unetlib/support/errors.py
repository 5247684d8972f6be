"""Errors of the machinery; here, so that raising one costs no import of PyTorch."""


class ModelFileError(ValueError):
    """A model file cannot be used: one sentence that names the file and the remedy."""


class RunError(ValueError):
    """A run's folder cannot be used: one sentence that names it and the remedy."""
