"""A new project: `slm init` looks at the data and writes recipe and deployments that fit it.

`survey` reports what the data is, `decide` what is taken where that is doubtful, `fit` the settings
by data and machine, `files` what is written.
"""
