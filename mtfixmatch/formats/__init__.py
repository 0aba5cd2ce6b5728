"""The formats of label files: each reads files into the same lists, whatever tool wrote them."""
