"""Results in a store that several machines share: pushed, pulled, and asked by a pipeline."""
