"""Results posted to an address as they come, without ever holding up what makes them.

Messages wait in a queue of bounded length and are sent one at a time by a thread in the
background. What cannot be delivered is counted and told, and is lost here: the record is the JSON
lines file.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

TOLD_AT_ONCE = 3
"""Failures that are told one by one; after that every hundredth."""


class Webhook:
    """Posts JSON objects to ``url``. ``close`` must be called at the end.

    Args:
        url: http or https. Redirections are not followed: they would turn a POST into a GET.
        timeout: seconds that connecting and each answer may take.
        attempts: how often a message is tried, on errors that may pass (no connection, no answer,
            408, 429 and 5xx). Other answers than 2xx are final.
        backoff: seconds before the second attempt, doubled before each further one.
        most_waiting: messages in the queue; beyond it the oldest are dropped.
        tell: called from the background with a line on failures.

    Raises:
        ValueError: not an address of that kind.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        attempts: int = 4,
        backoff: float = 0.5,
        most_waiting: int = 1000,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.url = check_address(url)
        self.delivered = 0
        self.failed = 0
        """Given up after all attempts, or refused."""
        self.dropped = 0
        """Pushed out of the queue by newer ones, or waiting or under way at the end."""
        self._host = urlsplit(url).netloc  # all that is told of the address: the rest may be secret
        self._timeout, self._attempts, self._backoff = timeout, attempts, backoff
        self._most_waiting, self._tell = most_waiting, tell
        self._opener = build_opener(NoRedirect())
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._abandon = threading.Event()
        self._is_delivering = False
        self._is_settled = False  # all is counted: a delivery still under way was given up
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def post(self, entry: dict[str, Any]) -> None:
        """Queue a message; returns at once."""
        with self._changed:
            is_full = len(self._queue) >= self._most_waiting
            if is_full:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(json.dumps(entry).encode())
            self._changed.notify()
        if is_full and is_told(self.dropped):
            self._tell(f"webhook {self._host}: too slow, {self.dropped} messages dropped so far.")

    def close(self, seconds: float = 5.0) -> None:
        """Send what waits, for ``seconds`` at most; the rest counts as dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._is_settled:
            self._abandon.set()
            self._thread.join(0.2)
            with self._changed:
                left = len(self._queue) + self._is_delivering
                self._queue.clear()
                self.dropped += left
                self._is_settled = True
            if left:
                self._tell(f"webhook {self._host}: {left} messages were still waiting at the end.")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue or self._abandon.is_set():
                    return
                body = self._queue.popleft()
                self._is_delivering = True
            problem = self._deliver(body)
            with self._changed:
                self._is_delivering = False
                if self._is_settled:  # `close` did not wait for this one and has counted it
                    return
                self.delivered += problem is None
                self.failed += problem is not None
            if problem is not None and is_told(self.failed):
                self._tell(
                    f"webhook {self._host}: not delivered ({problem}); {self.failed} messages so "
                    f"far."
                )

    def _deliver(self, body: bytes) -> str | None:
        """Why it could not be done, or None."""
        headers = {"Content-Type": "application/json", "User-Agent": "metaformer"}
        problem = "stopped"
        for attempt in range(self._attempts):
            if attempt and self._abandon.wait(self._backoff * 2 ** (attempt - 1)):
                break
            request = Request(self.url, data=body, headers=headers, method="POST")
            try:
                with self._opener.open(request, timeout=self._timeout):
                    return None
            except HTTPError as error:
                problem = f"answer {error.code}"
                error.close()
                if error.code not in (408, 429) and error.code < 500:
                    break
            except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
                problem = str(getattr(error, "reason", None) or error or type(error).__name__)
        return problem


class NoRedirect(HTTPRedirectHandler):
    """Treats a redirect as an error, like every answer that is not 2xx."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def check_address(url: str) -> str:
    """Raises: ValueError: not a full http or https address, or one with a name and password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{url}: not an address ({error}).") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{url}: a webhook needs an http or https address, http://localhost:9000/results for "
            f"example."
        )
    if parts.username is not None:
        raise ValueError(
            "the webhook's address holds a name and password, which are not sent. Use an address "
            "that needs none, with a secret in its path for example."
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r}: the address must be visible ASCII text; escape the rest (%20).")
    return url


def is_told(count: int) -> bool:
    return count <= TOLD_AT_ONCE or count % 100 == 0
