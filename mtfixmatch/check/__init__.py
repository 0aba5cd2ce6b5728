"""Check a dataset before training, without building a network."""
