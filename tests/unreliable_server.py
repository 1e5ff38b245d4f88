"""HTTP server on loopback whose files are whole, missing, refused, cut off or never come."""

import contextlib
import http.server
import threading

STALL_SECONDS = 30  # longer than any client in these tests waits


class UnreliableServer:
    """Serves `data` at /sound.wav, half of it at /cut.wav and none of it at /stalled.wav; 404 and 500 elsewhere."""

    def __init__(self, data: bytes):
        self.data = data
        self.stop = threading.Event()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        failing = name not in ("sound.wav", "cut.wav", "stalled.wav")
        if name == "missing.wav" or (failing and not (name == "get_500.wav" and handler.command == "HEAD")):
            return handler.send_error(404 if name == "missing.wav" else 500)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(self.data)))
        handler.end_headers()
        if handler.command == "HEAD":
            return None
        if name == "stalled.wav":
            self.stop.wait(STALL_SECONDS)
        with contextlib.suppress(ConnectionError):  # the client has given up
            handler.wfile.write(self.data if name == "sound.wav" else self.data[: len(self.data) // 2])
        handler.close_connection = True
        return None


@contextlib.contextmanager
def unreliable_server(data: bytes):
    """Runs the server; yields its address."""
    served = UnreliableServer(data)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.answer(self)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        served.stop.set()
        server.shutdown()
        server.server_close()
