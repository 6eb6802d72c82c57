"""Raw folders and the lists of their instances."""
