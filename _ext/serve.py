"""Show a built site on this computer only: `make serve`."""

import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def make_server(folder, ports=(0,)):
    """Return a server of `folder` on the first free of `ports` (0: any)."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    for port in ports:
        try:
            return ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError:
            continue
    raise OSError(f"no free port among {list(ports)}")


def main():
    folder = Path(sys.argv[1])
    if not (folder / "index.html").is_file():
        sys.exit(f"no site in {folder} yet: run `make book` first")
    with make_server(folder, [*range(8000, 8020), 0]) as server:
        print(f"The book is at http://127.0.0.1:{server.server_port}/  (Ctrl-C stops)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
