"""Spiking neurons: dynamics as pure functions, and modules that hold their parameters."""
