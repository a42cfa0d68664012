"""slm: small language models, from a dataset to a registered model, reproducibly.

The package is a plain library: every stage is a function of a config and of the records of the
stages before it. Importing it loads none of torch, prefect and mlflow; the modules do, when used.
"""

__version__ = "0.1.0"
