"""How often a request is made again, and after how long."""

from __future__ import annotations

import email.utils
import random
import time
from contextlib import suppress

from qbridge.findings.finding import error

FIRST = 0.2  # seconds before the second try; doubled for each after it
LONGEST = 8.0  # seconds between two tries, unless the server asks for more
TRIES = 6  # without a byte between them
ASKED = 300.0  # most seconds that are waited where a server asks for it


class Patience:
    """The tries of one request: waits that double, or as long as the server asks for."""

    def __init__(self, where: str) -> None:
        """`where` is what an error names."""
        self._where, self._tries, self._asked = where, 0, 0.0

    def renew(self) -> None:
        """Bytes came: the count begins anew."""
        self._tries = 0

    def asked_to_wait(self, header: str | None) -> None:
        """Retry-After: seconds, or a date (RFC 9110, 10.2.3); QBridgeError (QB404) for longer than anybody waits."""
        if header is None:
            return
        with suppress(ValueError, TypeError):
            text = header.strip()
            seconds = (
                float(text) if text.isdigit() else email.utils.parsedate_to_datetime(text).timestamp() - time.time()
            )
            self._asked = max(0.0, seconds)
        if self._asked > ASKED:
            fact = f"the server asks to come again in {self._asked:.0f} seconds"
            raise error("QB404", self._where, (fact,))

    def wait(self, fault: Exception) -> None:
        """Wait before the next try; QBridgeError (QB404) with the fault if it was the last."""
        self._tries += 1
        if self._tries >= TRIES:
            raise error("QB404", self._where, (f"{self._tries} tries; the last: {_said(fault)}",)) from None
        backoff = min(LONGEST, FIRST * 2 ** (self._tries - 1)) * random.uniform(0.75, 1.25)  # noqa: S311  no secret
        time.sleep(max(self._asked, backoff))
        self._asked = 0.0


def _said(fault: Exception) -> str:
    """A fault in a few words; never an address, which may hold a signature."""
    text = str(fault).partition("http")[0].strip()[:120]
    return text or type(fault).__name__
