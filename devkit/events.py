"""What ComfyUI says while it works: the few parts of a websocket client that reading it takes."""

import base64
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PROGRESS_TEXT = 3
"""ComfyUI's number for a node's line of text, among its binary messages."""


class Events:
    """The event stream of one client of one server, as (type, data) pairs."""

    def __init__(self, port: int, client: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.stream: BinaryIO = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        status = self.stream.readline()
        while self.stream.readline().strip():
            pass
        if b" 101 " not in status:
            raise ConnectionError(f"no websocket there: {status.decode(errors='replace').strip()}")
        self.socket.settimeout(None)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield events until either side hangs up."""
        while head := self.stream.read(2):
            code, payload = head[0] & 15, self.stream.read(self.length(head[1] & 127))
            if code == TEXT:
                event = json.loads(payload)
                yield event["type"], event["data"]
            elif code == BINARY and payload[:4] == struct.pack(">I", PROGRESS_TEXT):
                yield "text", node_text(payload[4:])
            elif code == PING:
                self.answer(payload)
            elif code == CLOSE:
                return

    def length(self, short: int) -> int:
        """The payload's length: in the header, or in the two or eight bytes after it."""
        if short < 126:
            return short
        size, form = (2, ">H") if short == 126 else (8, ">Q")
        return struct.unpack(form, self.stream.read(size))[0]

    def answer(self, payload: bytes) -> None:
        """Answer a ping; what a client sends is masked, by rule."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(bytes([128 | PONG, 128 | len(payload)]) + mask + masked)

    def close(self) -> None:
        """Hang up; a reader in another thread comes to its end."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the server hung up first
        self.socket.close()


def node_text(message: bytes) -> dict[str, Any]:
    """Split a node's line of text: length of the node's id, the id, the text."""
    end = 4 + struct.unpack(">I", message[:4])[0]
    return {"node": message[4:end].decode(), "text": message[end:].decode(errors="replace")}
