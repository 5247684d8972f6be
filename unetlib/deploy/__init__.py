"""A trained model at work: files in every format, masks of whole folders, comparisons."""
