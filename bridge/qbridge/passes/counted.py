"""Why a pass does not apply to a layer, where so many of its values are in the way."""

from __future__ import annotations


class Counted(ValueError):
    """`count` values are in the way; `what` says which, the same words for every layer, so that findings join."""

    def __init__(self, count: int, what: str, said: str = "") -> None:
        """Keep both; the message is `said`, by default the number and what they are."""
        self.count, self.what = count, what
        super().__init__(said or f"{count} {what}")
