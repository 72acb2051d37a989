"""Repeat the paper's tables and figures with the other commands."""
