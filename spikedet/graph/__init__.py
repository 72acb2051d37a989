"""A network as a graph of known operations: its record from a float network, and its rewrites."""
