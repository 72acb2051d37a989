"""Shared parts of all training loops."""
