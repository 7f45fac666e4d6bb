"""A network camera: a small HTTP server that sends real JPEGs, in all variants that browsers show."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Final

import cv2

from tests.media import grey

LEVELS = (40, 120, 200)


def jpeg(number: int) -> bytes:
    """Return the picture with this number, a plain grey of `LEVELS`."""
    return cv2.imencode(".jpg", grey(LEVELS[number % len(LEVELS)]))[1].tobytes()


def part(
    picture: bytes, *, kind: bytes = b"image/jpeg", before: bytes = b"--frame\r\n", off: int = 0
) -> bytes:
    """Return a picture as a part of a multipart stream, its length wrong by `off`."""
    typed = b"Content-Type: %s\r\n" % kind if kind else b""
    return before + typed + b"Content-Length: %d\r\n\r\n" % (len(picture) + off) + picture + b"\r\n"


def _behind(picture: bytes) -> bytes:
    return part(picture, before=b"")[:-2] + b"\r\n--frame\r\n"


MULTIPART: Final = "multipart/x-mixed-replace; boundary=frame"
DIALECTS: Final[dict[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "plain": (MULTIPART, part),
    "image/jpg": (MULTIPART, lambda picture: part(picture, kind=b"image/jpg")),
    "parameters": (MULTIPART, lambda picture: part(picture, kind=b"image/jpeg; charset=binary")),
    "untyped": (MULTIPART, lambda picture: part(picture, kind=b"")),
    "no first boundary": (MULTIPART, _behind),
    "length too long": (MULTIPART, lambda picture: part(picture, off=7)),
    "length too short": (MULTIPART, lambda picture: part(picture, off=-100)),
    "no length": (MULTIPART, lambda picture: b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + picture),
    "bare newlines": (MULTIPART, lambda picture: b"--frame\n\n" + picture + b"\n"),
    "another boundary": (MULTIPART.replace("frame", "--other"), part),
    "no multipart": ("video/x-motion-jpeg", lambda picture: picture),
    "octets": ("application/octet-stream", part),
}


class _Camera(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        with server.lock:
            server.requests += 1
        self.send_response(200)
        self.send_header("Content-Type", server.kind)
        self.end_headers()
        for number in count(server.requests if server.pictures == 1 else 0):
            if number and server.stopped.wait(server.period_s):
                return
            try:
                self.wfile.write(server.write(jpeg(number)))
            except OSError:
                return
            if server.pictures and (server.pictures == 1 or number + 1 == server.pictures):
                return

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, address: Any) -> None:
        """Log nothing when a reader disconnects."""


@contextmanager
def camera_server(
    dialect: str = "plain",
    *,
    port: int = 0,
    pictures: int = 0,
    period_s: float = 0.02,
    damage: Callable[[bytes], bytes] = lambda picture: picture,
) -> Iterator[Any]:
    """Serve pictures; yield the server, which counts requests in `requests`.

    Args:
        dialect: one of `DIALECTS`.
        port: 0 chooses one.
        pictures: so many per request, 0 for no end.
        period_s: seconds between them.
        damage: what is done to each picture on its way.
    """
    server: Any = _Server(("127.0.0.1", port), _Camera)
    server.kind, write = DIALECTS[dialect]
    server.write = lambda picture: write(damage(picture))
    server.pictures, server.period_s, server.requests = pictures, period_s, 0
    server.stopped, server.lock = threading.Event(), threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def mjpeg_server(port: int = 0) -> Iterator[int]:
    """Serve 50 frames a second; yield the port."""
    with camera_server(port=port) as server:
        yield server.server_port


@contextmanager
def raw_server(sent: bytes) -> Iterator[int]:
    """Answer one request with these bytes, then keep the connection open and silent; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # no connection
            with connection:
                connection.recv(65536)
                connection.sendall(sent)
                done.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
