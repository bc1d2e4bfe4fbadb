"""The server's connections, with an end to each wait: for a request's headers, for its body, and
for somebody who doesn't read the answer. Who sends a byte now and then holds nothing for long.

A seam with uvicorn: its protocol for h11 (`http` of its settings) is a class, of which this is one.
"""

from __future__ import annotations

import asyncio
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from stillhouse.guard.asgi import HEADERS_BYTES, SAFE, refusal

HEADERS_S = 10.0  # from a connection's first moment, or a later request's first byte
BODY_S = 30.0  # from the end of the headers
UNREAD_S = 30.0  # an answer that nobody takes
KEEP_ALIVE_S = 10  # between two requests
SETTINGS = {"timeout_keep_alive": KEEP_ALIVE_S, "h11_max_incomplete_event_size": HEADERS_BYTES}
SAID = {
    400: "the request is no HTTP",
    408: "the request did not come in time",
    431: f"the request has more than {HEADERS_BYTES:,} bytes of headers",
}


class TimedConnection(H11Protocol):
    """Closes a connection whose client is too slow, with 408 where it has begun a request."""

    _awaited: tuple[str, int] | None = None
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _watch(self) -> None:
        """Sets the timer of what the client owes now. One that runs for that goes on, whatever
        trickles in."""
        owed, limit_s = None, 0.0
        if not self.transport.is_closing():
            state = self.conn.their_state
            if state is h11.SEND_BODY:
                owed, limit_s = ("body", id(self.cycle)), BODY_S
            elif state is h11.IDLE and self.timeout_keep_alive_task is None:
                owed, limit_s = ("headers", id(self.cycle)), HEADERS_S
        if owed == self._awaited:
            return
        self._awaited = owed
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(limit_s, self._too_late) if owed else None

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        begun = self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])
        if self.cycle is not None:
            self.cycle.disconnected = True  # who reads the body is told that its client left
            self.cycle.message_event.set()
        if begun and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(408)
        self._close()

    def _close(self) -> None:
        """Closes, and does not wait for long for a client that reads nothing."""
        self.transport.close()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP, or has headers without end: uvicorn calls it while it handles h11's
        error."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(status if status in SAID else 400)
        self._close()

    def _refuse(self, status: int) -> None:
        body = refusal(SAID[status])
        told = {
            **SAFE, "content-type": "application/json", "content-length": str(len(body)),
            "connection": "close",
        }  # fmt: skip
        headers = [(name.encode(), value.encode()) for name, value in told.items()]
        head = h11.Response(status_code=status, headers=headers, reason=b"")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
