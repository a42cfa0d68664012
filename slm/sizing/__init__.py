"""The size of a model as one dial, and the ladder of runs that its rules are fitted on."""
