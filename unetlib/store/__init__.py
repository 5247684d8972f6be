"""Training runs on disk: train, resume, open, compare."""
