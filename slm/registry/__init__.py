"""Register: an evaluated checkpoint → a model version; the gate promotes it."""
