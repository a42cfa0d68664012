"""Orchestration: the `slm` command and the Prefect flows over the library `slm`."""
