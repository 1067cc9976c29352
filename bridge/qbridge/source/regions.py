"""Rectangles of a stored matrix, in elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Rows and columns of a stored matrix of `shape`."""

    shape: tuple[int, int]
    top: int
    left: int
    rows: int
    columns: int

    @property
    def words(self) -> int:
        """How many words it has."""
        return self.rows * self.columns

    def segments(self, itemsize: int) -> Iterator[tuple[int, int]]:
        """(offset, length) in bytes of its contiguous pieces, in order."""
        width = self.shape[1] * itemsize
        if self.columns == self.shape[1]:
            yield self.top * width, self.rows * width
            return
        for row in range(self.top, self.top + self.rows):
            yield row * width + self.left * itemsize, self.columns * itemsize
