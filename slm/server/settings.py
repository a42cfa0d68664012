"""The limits of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """What a server takes on. Beyond it a request is refused, with the status that says so."""

    api_key: str | None = None  # 401 without it
    max_batch: int = 32  # texts that are generated together
    queue: int = 256  # texts that wait for a place among them; 429 beyond
    timeout: float = 300.0  # seconds of a request, the wait included; 504 beyond
    max_texts: int = 128  # of one request: prompts times n; 400 beyond
    max_tokens: int = 2048  # of one text; 400 beyond
    max_body: int = 1 << 20  # bytes of a request; 413 beyond
    body_timeout: float = 30.0  # seconds in which a request must have arrived; 408 beyond
