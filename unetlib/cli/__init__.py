"""The commands of ``python -m unetlib``. PyTorch is imported late, by those that compute."""
