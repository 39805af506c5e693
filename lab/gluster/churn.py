"""Makes changes in the background while something else happens to a volume."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

_ROUNDS = 10


class Churn:
    """Makes new folders, files and links, and renames earlier ones, for as long as the block lasts; at least some."""

    def __init__(self, root: Path) -> None:
        self._root, self._end, self.rounds = root, threading.Event(), 0
        self._error: BaseException | None = None
        root.mkdir()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._end.wait(0.2):
                self._round(self._root / str(self.rounds))
                self.rounds += 1
        except BaseException as exc:  # noqa: BLE001 __exit__ reports it
            self._error = exc

    def _round(self, top: Path) -> None:
        (top / "sub").mkdir(parents=True)
        for n in range(8):
            (top / f".tmp{n}").write_text(f"{n} of {top}" * 50)
            os.rename(top / f".tmp{n}", top / "sub" / f"file{n}")
        (top / "hard").hardlink_to(top / "sub" / "file1")
        (top / "link").symlink_to("sub/file2")
        os.rename(top / "sub", top / "moved")
        (top / "moved" / "file3").unlink()
        earlier = top.parent / str(self.rounds - 5)
        if earlier.exists():
            os.rename(earlier / "moved" / "file4", top / "from before")
            with (earlier / "moved" / "file5").open("a") as file:
                file.write("more")
            os.rename(earlier / "moved", top / "moved from before")

    def __enter__(self) -> Churn:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 _trace: TracebackType | None) -> None:
        while kind is None and self.rounds < _ROUNDS and self._thread.is_alive():
            self._thread.join(0.1)
        self._end.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
