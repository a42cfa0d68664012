"""Continuous batching: a thread that generates for many requests together.

A text joins the batch as soon as there is a place in it, and leaves when it is done, cancelled or
out of time, between two tokens of the others. What it is does not depend on them
(`slm.model.batch`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from slm.errors import SlmError
from slm.model.batch import Batch, Completion, Score
from slm.model.decode import Decoder
from slm.tokens.tokenizer.bpe import Tokenizer

logger = logging.getLogger(__name__)

MAX_PREFILL = 4096  # tokens of prompts that are read between two tokens of the other texts

End = Literal["stop", "length", "timeout", "error"]


@dataclass(frozen=True)
class Progress:
    """What a text has more than before."""

    text: str
    scores: list[Score]
    end: End | None = None


@dataclass(eq=False)
class Ticket:
    """A text that was asked for, and who gets its progress."""

    row: Completion
    put: Callable[[Progress], None]
    call: Callable[..., Any]  # runs a function where `put` may be called: call_soon_threadsafe
    deadline: float  # by time.monotonic
    streams: bool = True  # False: only the end is reported
    cancelled: bool = False
    scored: int = 0  # scores that were passed on
    joined: float | None = None  # when it got its place, by time.monotonic

    def progress(self, end: End | None) -> Progress:
        scores = self.row.scores[self.scored :]
        self.scored += len(scores)
        return Progress(self.row.take(final=end is not None), scores, end)


class Busy(SlmError):
    """The queue is full."""


class Closed(SlmError):
    """The engine takes no more texts."""


@dataclass
class Counts:
    """What an engine has done so far."""

    tokens: int = 0  # generated
    prompt_tokens: int = 0
    steps: int = 0
    failures: int = 0


class Engine:
    """Generates texts in a thread of its own, until it is closed."""

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, *, max_batch: int = 32, queue: int = 256
    ) -> None:
        self.decoder, self.tokenizer = decoder, tokenizer
        self.max_batch, self.queue = max_batch, queue
        self.counts = Counts()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Completion, Ticket] = {}
        self._events: list[tuple[Ticket, Progress]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._batch = Batch(decoder, tokenizer, max_batch)
        self._thread = threading.Thread(target=self._work, name="slm-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, tickets: list[Ticket]) -> None:
        """Let texts wait for a place. Raises Busy where not all have room, Closed when closing."""
        with self._changed:
            if self._closing:
                raise Closed("the model is being replaced, or the server is stopping")
            free = self.max_batch - len(self._running)
            if len(self._waiting) + len(tickets) > self.queue + free:
                raise Busy(f"{len(self._waiting)} texts are waiting: the queue is full")
            self._waiting += tickets
            self._changed.notify()

    def cancel(self, tickets: list[Ticket]) -> None:
        """Drop texts that nobody waits for; nothing more is reported of them."""
        for ticket in tickets:
            ticket.cancelled = True
        with self._changed:
            self._changed.notify()

    def close(self, timeout: float | None = None) -> bool:
        """Take no more texts and end once those that are there are done; whether that was in time.

        After the timeout, seconds, what is left is cancelled.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        in_time = not self._thread.is_alive()
        if not in_time:
            self.cancel([*self._waiting, *self._running.values()])
            self._thread.join()
        return in_time

    # ---- the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            try:
                self._drop()
                self._admit()
                self._advance()
            except Exception:
                logger.exception("the texts that were being generated are lost")
                self._fail()
            self._flush()

    def _wait(self) -> bool:
        """Wait until there is work; False at the end."""
        with self._changed:
            while not self._waiting and not self._running:
                if self._closing:
                    return False
                self._changed.wait()
        return True

    def _drop(self) -> None:
        """Let go of the texts that are cancelled or out of time."""
        now = time.monotonic()
        with self._changed:
            gone = [t for t in self._waiting if t.cancelled or t.deadline < now]
            if gone:
                self._waiting = deque(t for t in self._waiting if t not in gone)
        for ticket in [t for t in self._running.values() if t.cancelled or t.deadline < now]:
            self._batch.remove(ticket.row)
            del self._running[ticket.row]
            gone.append(ticket)
        for ticket in gone:
            if not ticket.cancelled:
                self._report(ticket, "timeout")

    def _admit(self) -> None:
        """Give free places to the texts that wait, in their order."""
        tickets: list[Ticket] = []
        with self._changed:
            tokens = 0
            while self._waiting and len(tickets) < self._batch.free and tokens < MAX_PREFILL:
                ticket = self._waiting.popleft()
                tokens += len(ticket.row.ids)
                tickets.append(ticket)
                self._running[ticket.row] = ticket
        if tickets:
            self.counts.prompt_tokens += sum(len(t.row.ids) for t in tickets)
            self._end(self._batch.add([ticket.row for ticket in tickets]))
            for ticket in tickets:
                ticket.joined = time.monotonic()

    def _advance(self) -> None:
        if not self._running:
            return
        self.counts.steps += 1
        self.counts.tokens += len(self._running)
        # Texts are passed on before the model reads their last tokens, which takes a while.
        self._end(self._batch.choose())
        for ticket in self._running.values():
            if ticket.streams:
                self._report(ticket, None)
        self._flush()
        self._batch.read()

    def _end(self, rows: list[Completion]) -> None:
        for row in rows:
            self._report(self._running.pop(row), "stop" if row.ended else "length")

    def _report(self, ticket: Ticket, end: End | None) -> None:
        progress = ticket.progress(end)
        if progress.text or progress.scores or end:
            self._events.append((ticket, progress))

    def _flush(self) -> None:
        """Pass on what is new: one call for all that are told in the same place."""
        calls: dict[Callable[..., Any], list[tuple[Ticket, Progress]]] = {}
        for ticket, progress in self._events:
            if not ticket.cancelled:
                calls.setdefault(ticket.call, []).append((ticket, progress))
        self._events = []
        for call, events in calls.items():
            with suppress(RuntimeError):  # its event loop is closed: nobody waits any more
                call(_put_all, events)

    def _fail(self) -> None:
        """Report the texts of the batch as failed, and begin a new one."""
        self.counts.failures += 1
        for ticket in self._running.values():
            self._report(ticket, "error")
        self._running.clear()
        self._batch = Batch(self.decoder, self.tokenizer, self.max_batch)


def _put_all(events: list[tuple[Ticket, Progress]]) -> None:
    for ticket, progress in events:
        ticket.put(progress)
