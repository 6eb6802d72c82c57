"""Reports by which a person judges a dataset."""
