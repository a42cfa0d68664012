"""Server: a model behind OpenAI's completions over HTTP, and a page to write with it."""
