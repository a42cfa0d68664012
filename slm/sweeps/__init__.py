"""Sweeps: many runs of one recipe with other settings, as a function of their seed and results."""
