"""A headless Chromium, driven over its DevTools protocol: what the site test needs.

Selenium and Playwright would do more, and would look up hosts and fetch drivers.
"""

import atexit
import base64
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--force-device-scale-factor=1",
    # No name is looked up: a request to another host fails at once, and is seen.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def find_chromium():
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Connection:
    """To the browser or to a tab. `events` holds what was reported meanwhile."""

    def __init__(self, address):
        self.socket = websocket.create_connection(
            address, suppress_origin=True, timeout=30
        )
        self.events = []
        self.calls = 0

    def call(self, method, **params):
        self.calls += 1
        self.socket.send(
            json.dumps({"id": self.calls, "method": method, "params": params})
        )
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.calls:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)


class Page(Connection):
    """One tab. `events` holds what the browser reported since the last visit."""

    def __init__(self, address):
        super().__init__(address)
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def listen(self, seconds):
        """Collect events until none has come for `seconds`."""
        self.socket.settimeout(seconds)
        try:
            while True:
                self.events.append(json.loads(self.socket.recv()))
        except websocket.WebSocketTimeoutException:
            pass
        finally:
            self.socket.settimeout(30)

    def of(self, method):
        return [e["params"] for e in self.events if e.get("method") == method]

    def visit(self, url, limit=30):
        """Open `url` and wait until it has loaded and has gone quiet."""
        # The blank page has to be there first: on a busy machine its event may come
        # late, and would be taken for that of `url`.
        for address, quiet in (("about:blank", 0.05), (url, 0.4)):
            self.events.clear()
            self.call("Page.navigate", url=address)
            deadline = time.monotonic() + limit
            while not self.of("Page.loadEventFired") or self.waiting():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{address} still loads after {limit} s")
                self.listen(0.1)
            self.listen(quiet)

    def waiting(self):
        """Requests of the shown page that have not ended; a page may forward."""
        shown = [f["frame"] for f in self.of("Page.frameNavigated")]
        loader = next((f["loaderId"] for f in shown[::-1] if "parentId" not in f), None)
        started = {
            request["requestId"]
            for request in self.of("Network.requestWillBeSent")
            if request["loaderId"] == loader
        }
        ended = {r["requestId"] for r in self.of("Network.loadingFinished")}
        failed = {r["requestId"] for r in self.of("Network.loadingFailed")}
        return started - ended - failed

    def evaluate(self, expression):
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def dark(self, on):
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
            ],
        )

    def press(self, key):
        """Press and release a key: "Space", or one that is named as its code is."""
        about = {"key": " " if key == "Space" else key, "code": key}
        about["windowsVirtualKeyCode"] = {"Space": 32, "ArrowDown": 40}[key]
        text = {"text": " "} if key == "Space" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path, whole=True):
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def open_page():
    """Give a tab of Chromium that shares no cache and no memory with any other."""
    port, browser = start_chromium()
    context = browser.call("Target.createBrowserContext")
    tab = browser.call("Target.createTarget", url="about:blank", **context)["targetId"]
    page = Page(f"ws://127.0.0.1:{port}/devtools/page/{tab}")
    try:
        yield page
    finally:
        page.socket.close()
        browser.call("Target.disposeBrowserContext", **context)


@functools.cache
def start_chromium():
    """Chromium's port and a connection to it, started once; it ends with Python."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    process = subprocess.Popen(
        [find_chromium(), *FLAGS, *sandbox, f"--user-data-dir={profile.name}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    @atexit.register
    def end():
        process.terminate()
        process.wait(30)
        profile.cleanup()

    port = wait_for_port(Path(profile.name, "DevToolsActivePort"), process)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/version") as reply:
        return port, Connection(json.load(reply)["webSocketDebuggerUrl"])


def wait_for_port(file, process, limit=60):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        if process.poll() is not None:
            raise RuntimeError(f"Chromium ended at once, exit code {process.poll()}")
        time.sleep(0.05)
    raise TimeoutError(f"Chromium opened no DevTools port in {limit} s")
