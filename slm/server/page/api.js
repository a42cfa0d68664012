// The HTTP API: what it answers, and what goes wrong, as a sentence.

const KEY = "slm-api-key"; // in sessionStorage: gone with the tab

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** What the server refused or could not do; `status` is 0 where no answer came. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The models that are served, as of GET /v1/models. */
export async function models() {
  const response = await ask("v1/models", {});
  return (await response.json()).data;
}

/**
 * Stream a completion: `onChunk` receives each object of the stream.
 * Throws ApiError, and AbortError where `signal` ends it.
 */
export async function complete(body, signal, onChunk) {
  const response = await ask("v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error.message);
    finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
    onChunk(chunk);
  }
  if (!finished) throw new ApiError(0, "The connection ended before the text did.");
}

async function ask(path, options) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached: is slm serve still running?");
  }
  if (!response.ok) throw new ApiError(response.status, await reason(response));
  return response;
}

async function reason(response) {
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    message = `the server answered with status ${response.status}`;
  }
  const seconds = response.headers.get("Retry-After");
  return seconds ? `${message} (again in ${seconds} s)` : message;
}

/** The data of each server-sent event of a stream of bytes. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      pending += done ? "\n\n" : decoder.decode(value, { stream: true });
      const blocks = pending.split(/\r\n\r\n|\n\n|\r\r/);
      pending = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r\n|\n|\r/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
