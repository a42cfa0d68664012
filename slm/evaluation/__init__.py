"""Evaluate: a checkpoint and held-out documents → how well it predicts them."""
