"""Rewrites of graphs, one in each file. A rewrite changes a graph in place."""
