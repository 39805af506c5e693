"""What the slave remembers of each stream of changes (protocol.stream_of): stime, entry_stime, mark, epoch.

Where several workers each bring their part of one master, each of them has its own stream. Standard library only,
Python 3.9.
"""

from __future__ import annotations

from typing import Any

from gsync.link.protocol import Fenced

WALK = "reshaped -"      # a mark that no worker makes: a worker that resumes from it must crawl the whole master
_STANDING = ("stime", "entry_stime", "mark")
_NUMBER = "streams"      # the fact that lists the streams of the last commit


class Streams:
    """The streams, kept as named facts. stream: that of the connection."""

    stream = ""

    def fact(self, key: str) -> Any:
        """A fact, None if it is unknown."""
        raise NotImplementedError

    def set_fact(self, key: str, value: Any) -> None:
        raise NotImplementedError

    def check_epoch(self, epoch: int) -> None:
        """Raise Fenced if a worker with a younger epoch has been here."""
        known = self.fact(self.key("epoch"))
        if isinstance(known, int) and epoch < known:
            raise Fenced(f"a worker with a newer epoch ({known}; this one has {epoch}) has taken over the slave")

    def key(self, fact: str) -> str:
        """The key of a fact of the connection's stream."""
        return f"{fact}:{self.stream}" if self.stream else fact

    @property
    def _all(self) -> str:
        """The set that the connection's stream belongs to: <m> or <m>x<digest>; "" for a stream that is alone."""
        return self.stream.partition("of")[2]

    def standing(self) -> tuple[int | None, int | None, str | None]:
        """stime, entry_stime and mark. A stream that has none yet gets those of the last walk through the whole master.
        After the master's division into parts has changed, it gets the stime that all former parts had reached, and
        WALK."""
        former = self.fact(_NUMBER)
        if former not in (None, self._all):
            stime = self._everyones(str(former))
            return (None, None, None) if stime is None else (stime, None, WALK)
        for suffix in ((f":{self.stream}", f":all{self._all}") if self.stream else ("",)):
            stime, entry_stime, mark = (self.fact(fact + suffix) for fact in _STANDING)
            if isinstance(stime, int):
                return (stime, entry_stime if isinstance(entry_stime, int) else None,
                        mark if isinstance(mark, str) else None)
        return None, None, None

    def set_standing(self, stime: int, entry_stime: int | None, mark: str | None, walked: bool) -> None:
        former = self.fact(_NUMBER)
        if former not in (None, self._all):
            for suffix in _suffixes(str(former)):
                for fact in _STANDING:
                    self.set_fact(fact + suffix, None)
        for suffix in ((f":{self.stream}", *([f":all{self._all}"] if walked else [])) if self.stream else ("",)):
            for fact, value in (("stime", stime), ("entry_stime", entry_stime), ("mark", mark)):
                if value is not None or fact == "mark":
                    self.set_fact(fact + suffix, value)
        if former != self._all:
            self.set_fact(_NUMBER, self._all)

    def everyones_stime(self) -> int | None:
        """The time up to which all streams are at the slave; None if one of them has no stime yet."""
        return self._everyones(self._all)

    def _everyones(self, which: str) -> int | None:
        *suffixes, walked = _suffixes(which)
        stimes = [self.fact("stime" + suffix) or self.fact("stime" + walked) for suffix in suffixes or [walked]]
        known = [stime for stime in stimes if isinstance(stime, int)]
        return min(known) if len(known) == len(stimes) else None


def _suffixes(which: str) -> list[str]:
    """The key suffixes of each stream of a set, and of the facts that hold for the whole set."""
    return [*(f":{n}of{which}" for n in range(int(which.partition("x")[0]))), f":all{which}"] if which else [""]
