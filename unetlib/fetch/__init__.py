"""Data sets from elsewhere: list, check, download, make small ones."""
