"""What a model was trained on, seen: the rows of a step, a text, what was dropped, a data card."""
