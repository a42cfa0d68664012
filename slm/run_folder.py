"""A run's folder, and the data folder that holds it."""
