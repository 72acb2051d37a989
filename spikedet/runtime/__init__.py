"""Spiking networks that run: passes over time, any-time readout, firing rates, and their files."""
