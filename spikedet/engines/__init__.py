"""Engines run a spiking graph over time. They are listed in `registry`."""
