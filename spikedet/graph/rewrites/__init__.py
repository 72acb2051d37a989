"""One file a rewrite: each takes a graph and changes it in place."""
