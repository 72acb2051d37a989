"""Engines: what runs a spiking graph over time. `registry` has them by name."""
