"""What a flow run by hand needs: Prefect's settings, an API to talk to, and signals.

Prefect reads its settings when it is imported: call `by_hand` before that.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from betaflow.errors import UserError
from betaflow.parent import end_with_parent
from flows.stages import GRACE, KILL_WAIT

START_WAIT = 120.0  # seconds; its first start makes a database, slowly on a busy machine


_ending = threading.Event()  # the program's end has come for the server too
_own_api = ""  # the URL of the API that `start_api` starts; empty: the user named a server


def by_hand() -> None:
    """Set what a run without servers needs; what the user has set stays.

    The URL of our own API is in the environment from the start, before there is one, since
    Prefect's threads do not see settings changed later.
    """
    global _own_api
    defaults = {
        "PREFECT_HOME": str(Path.cwd() / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        # Our own display says what happens; Prefect keeps its log in its database all the same.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):
        _own_api = f"http://127.0.0.1:{_free_port()}/api"
        os.environ["PREFECT_API_URL"] = _own_api
        for name in ("no_proxy", "NO_PROXY"):  # a proxy does not know this machine's loopback
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))


@contextmanager
def start_api() -> Iterator[None]:
    """Start a temporary Prefect API, unless the user named a server; run flows within `with`.

    Prefect would start one by itself. Ours has a session of its own, since Ctrl-C must not
    end it before the stages have stopped and their states are recorded; and it spares this
    process the import of the server, several seconds of every run. It ends when the program
    does, after Prefect's threads have sent the last of the log.
    """
    if _own_api:
        _start_server(_own_api)
    else:
        _require_server(os.environ.get("PREFECT_API_URL"))
    yield


def _require_server(url: str | None) -> None:
    """Raises `UserError` where nothing answers at the address that the user has named."""
    if not url:
        return
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10):
            return
    except urllib.error.HTTPError:
        return  # it answers; who may do what there is for Prefect to say
    except OSError as error:
        parts = urlsplit(url)
        where = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        raise UserError(
            f"no Prefect server answers at {where} ({error}), which PREFECT_API_URL names; start "
            "it, or unset PREFECT_API_URL to run without a server"
        ) from None


def _start_server(url: str) -> None:
    command = "uvicorn --factory prefect.server.api.server:create_app --log-level error"
    # As Prefect starts its temporary server: no UI, no services but the needed ones.
    plain = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    host, port = str(urlsplit(url).hostname), str(urlsplit(url).port)
    server = subprocess.Popen(
        [sys.executable, "-m", *command.split(), "--host", host, "--port", port],
        env=os.environ | plain | {"PREFECT__SERVER_FINAL": "1"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, signal.SIGTERM),  # a killed program can't end it
    )
    atexit.register(_end, server)
    _wait_for(server, f"{url}/health")
    threading.Thread(target=_watch, args=(server,), daemon=True).start()


def _watch(server: subprocess.Popen[bytes]) -> None:
    """End the program soon after its server, if that ends first: calls would be retried in vain."""
    server.wait()
    if _ending.is_set():
        return
    print(
        f"Prefect's temporary server ended (status {server.returncode}). Stopping the stages; "
        "run it again, and it goes on from there.",
        file=sys.stderr,
        flush=True,
    )
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE + KILL_WAIT)  # what the stages have; Prefect would take minutes more
    os._exit(128 + signal.SIGTERM)


def _end(server: subprocess.Popen[bytes]) -> None:
    _ending.set()
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + START_WAIT
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise UserError(
        "Prefect's temporary server did not start; its message is above. To have a fresh "
        f"database, remove {os.environ['PREFECT_HOME']}"
    )


def catch_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP unwind the program, so that the stages are ended."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # A script's background job starts with SIGINT ignored; asked directly, it should stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)


def exit_code(error: BaseException) -> int:
    """Of a program that was interrupted: 128 + the signal's number."""
    code = error.code if isinstance(error, SystemExit) else None
    return code if isinstance(code, int) else 128 + signal.SIGINT
