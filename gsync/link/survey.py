"""An agent's report on a place that may become a slave: the answer to `survey`, before anything changes there.

Shared by both ends. Standard library only, Python 3.9.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NUMBERS = "inode numbers"  # among the missing abilities: an inode can be told from others at any time


class Survey(NamedTuple):
    """now: the clock there, ns. state: missing (its parent folder exists), empty, ours, foreign, or refused. problems:
    why it cannot be the slave, one line each. free: bytes, a huge number if the file system does not tell; inodes: how
    many more, None without a limit. lacks: kinds of attributes and names that it cannot hold, as far as visible from
    outside, and NUMBERS. volume_id: the id of a GlusterFS volume."""

    protocol: int
    version: str
    python: str
    uid: int
    now: int
    state: str
    problems: list[str]
    busy: str
    free: int
    inodes: int | None
    file_system: str
    lacks: list[str]
    volume_id: str = ""

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, answer: dict[str, Any]) -> Survey:
        return cls(**answer)
