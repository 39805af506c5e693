"""desi_transfer_status_<YEAR>.json as desitransfer writes it, for scripts that read it.

{night: {exposure: [[stage, success, milliseconds since the epoch], ...]}}, the newest stage first; stage 0 is the
transfer ("rsync"), 1 the checksum, 2 the backup; success 0 or 1. A file belongs to the year of its nights. Units
without a night are left out. A unit without an exposure appears under its path below the night.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from gsync.base.durable import make_dirs, replace_file
from gsync.transfer.delivery.dataset import DataSet
from gsync.transfer.delivery.rows import Deliveries, Stage
from gsync.transfer.delivery.units import NIGHT, Pattern

STAGES = {Stage.PULL: 0, Stage.CHECKSUM: 1, Stage.BACKUP: 2}
_MS = 1_000_000

Year = dict[str, dict[str, list[list[int]]]]


def years(dataset: DataSet, deliveries: Deliveries, only: set[int] | None = None) -> dict[int, Year]:
    """The contents of the files by year."""
    pattern = Pattern(dataset.unit)
    if NIGHT not in pattern.fields:
        return {}
    found: dict[int, Year] = {}
    for group, day, _changed, _shown in deliveries.groups(dataset.name):
        if only is not None and day.year not in only:
            continue
        exposures = found.setdefault(day.year, {}).setdefault(os.fsdecode(group), {})
        for row in deliveries.of_group(dataset.name, group):
            unit = pattern.match(row.path)
            name = unit.fields.get("exposure") if unit is not None else None
            rows = [[STAGES[stage], int(ok), at // _MS] for stage, (ok, at) in row.stages.items() if stage in STAGES]
            rows.sort(key=lambda each: (-each[2], -each[0]))
            exposures[name or os.fsdecode(row.path.partition(b"/")[2] or row.path)] = rows
    return found


def write(dataset: DataSet, deliveries: Deliveries, written: dict[int, int]) -> None:
    """Update the files in dataset.desi_status, each in one step; current ones stay as they are. written: for each year,
    the number of its nights' changes at the last update."""
    folder = os.fsencode(dataset.desi_status)
    make_dirs(folder, 0o755)
    changes: dict[int, int] = {}
    for _group, day, changed, _shown in deliveries.groups(dataset.name):
        changes[day.year] = changes.get(day.year, 0) + changed
    stale = {year for year, changed in changes.items() if written.get(year) != changed}
    for year, nights in years(dataset, deliveries, stale).items() if stale else ():
        path = os.path.join(folder, b"desi_transfer_status_%d.json" % year)
        data = json.dumps(nights, separators=(",", ":")).encode("ascii")
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if file.read() == data:
                written[year] = changes[year]
                continue
        replace_file(path, data, 0o644)
        written[year] = changes[year]
