"""The `slm` command: it parses, calls the library, and shows."""
