"""The errors of the API, in OpenAI's form."""

from typing import Any

from starlette.responses import JSONResponse


class ApiError(Exception):
    """A request that is refused, or failed: a status, and one message."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        message = str(self).encode(errors="replace").decode()
        fields = {"message": message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def failed() -> ApiError:
    """The error for a fault of the server's own."""
    message = "the server failed to generate this text; its log says why. Try again"
    return ApiError(500, message, kind="server_error", code="internal_error")


def timed_out(seconds: float) -> ApiError:
    message = f"not done after {seconds:g} s, the server's --timeout: ask for fewer tokens"
    return ApiError(504, message, kind="timeout_error", code="timeout")
