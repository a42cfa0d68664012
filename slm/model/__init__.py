"""The GPT: its parts, its loss, sampling from it, and the model on disk."""
