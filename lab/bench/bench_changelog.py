"""Prints how many changelog records per second of CPU time are read and written.

The changelog is that of unpacking 100,000 files: CREATE, D and M of each, 200 in a folder; then the same with a RENAME
and an UNLINK of each. Run: python -m lab.bench.bench_changelog
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from gsync.changelog.records import HEADER, Data, Entry, Fop, Meta, Record, encode, read_changes, read_records

FILES, ROUNDS = 100_000, 5


def make_records(renamed: bool) -> list[Record]:
    records: list[Record] = []
    for i in range(FILES):
        if i % 200 == 0:
            pargfid = os.urandom(16)
        gfid, name, new = os.urandom(16), (pargfid, b"file%07d.txt" % i), (pargfid, b"other%07d.txt" % i)
        records += [Entry(Fop.CREATE, gfid, (name,), 0o100644, 1000, 1000), Data(gfid), Meta(Fop.SETATTR, gfid)]
        if renamed:
            records += [Entry(Fop.RENAME, gfid, (name, new)), Entry(Fop.UNLINK, gfid, (new,))]
    return records


def best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    for title, renamed in [("create, data, meta", False), ("and rename, unlink", True)]:
        records = make_records(renamed)
        data = HEADER + b"".join(map(encode, records))
        for name, work in works_on(records, data).items():
            print(f"{name:12} {title:20} {len(records) / best(work):>9,.0f} records/s")


def works_on(records: list[Record], data: bytes) -> dict[str, Callable[[], object]]:
    return {"read_changes": lambda: [len(part.data) for part in read_changes(io.BytesIO(data))],
            "read_records": lambda: sum(1 for _ in read_records(io.BytesIO(data))),
            "encode": lambda: sum(len(encode(record)) for record in records)}


if __name__ == "__main__":
    main()
