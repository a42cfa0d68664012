"""An OpenAI-compatible HTTP server for models of this project: `slm serve`."""
