"""Measurements, run by hand: `make figures`."""
