"""A generator of street scenes with exact labels, to try the project without downloads."""
