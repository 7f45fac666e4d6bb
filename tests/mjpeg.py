"""A network camera: a tiny HTTP server that sends real JPEGs as multipart/x-mixed-replace."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2

from tests.media import grey

LEVELS = (40, 120, 200)


class _Camera(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        stopped: threading.Event = self.server.stopped  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        number = 0
        while not stopped.wait(0.02):
            picture = cv2.imencode(".jpg", grey(LEVELS[number % len(LEVELS)]))[1].tobytes()
            number += 1
            part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
            try:
                self.wfile.write(part + picture + b"\r\n")
            except OSError:
                return

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def mjpeg_server(port: int = 0) -> Iterator[int]:
    """Serve 50 frames a second to whoever asks; yield the port."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Camera)
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.stopped.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()
