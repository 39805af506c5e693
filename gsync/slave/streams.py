"""What the slave remembers of each stream of changes (protocol.stream_of): stime, entry_stime, mark, epoch.

Where several workers bring their parts of one master, each of them has its own. Standard library only, Python 3.9.
"""

from __future__ import annotations

from typing import Any

from gsync.slave.protocol import Fenced


class Streams:
    """Over facts by name. stream: of the connection."""

    stream = ""

    def fact(self, key: str) -> Any:
        """A fact, None if it is not known."""
        raise NotImplementedError

    def set_fact(self, key: str, value: Any) -> None:
        raise NotImplementedError

    def check_epoch(self, epoch: int) -> None:
        """Fenced if a worker with a younger epoch has been here."""
        known = self.fact(self.key("epoch"))
        if isinstance(known, int) and epoch < known:
            raise Fenced(f"a worker with a younger epoch ({known}, this one has {epoch}) has taken the slave over")

    def key(self, fact: str) -> str:
        """Under which a fact of the connection's stream is kept."""
        return f"{fact}:{self.stream}" if self.stream else fact

    @property
    def _all(self) -> str:
        """The suffix of what holds for all streams together."""
        return self.stream.partition("of")[2]

    def standing(self) -> tuple[int | None, int | None, str | None]:
        """stime, entry_stime and mark; of a stream that has none yet, those of the last walk through all of the master.
        """
        for suffix in ((f":{self.stream}", f":all{self._all}") if self.stream else ("",)):
            stime, entry_stime, mark = (self.fact(fact + suffix) for fact in ("stime", "entry_stime", "mark"))
            if isinstance(stime, int):
                return (stime, entry_stime if isinstance(entry_stime, int) else None,
                        mark if isinstance(mark, str) else None)
        return None, None, None

    def set_standing(self, stime: int, entry_stime: int | None, mark: str | None, walked: bool) -> None:
        for suffix in ((f":{self.stream}", *([f":all{self._all}"] if walked else [])) if self.stream else ("",)):
            for fact, value in (("stime", stime), ("mark", mark), ("entry_stime", entry_stime)):
                if value is not None or fact == "mark":
                    self.set_fact(fact + suffix, value)

    def everyones_stime(self) -> int | None:
        """Up to which all streams are at the slave; None if one never was."""
        if not self.stream:
            stime = self.fact("stime")
            return stime if isinstance(stime, int) else None
        walked = self.fact(f"stime:all{self._all}")
        stimes = [self.fact(f"stime:{n}of{self._all}") or walked for n in range(int(self._all))]
        known = [stime for stime in stimes if isinstance(stime, int)]
        return min(known) if len(known) == len(stimes) else None
