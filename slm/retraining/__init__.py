"""Retraining: how a dataset has changed, and whether that is a reason to train again."""
