"""Tracking: a run folder, mirrored to MLflow."""
