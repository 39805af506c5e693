"""The status of delivery: the colour of each unit and night, and the JSON document that programs read.

Green: everything is done. Amber: something is still to come. Red: a person must act. Not here: the pages for people
(html) and the files they are in (statuspage).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from gsync.base.model import NS
from gsync.transfer.delivery.dataset import DataSet, DeliverySettings
from gsync.transfer.delivery.rows import THERE, Deliveries, Delivery, Stage, UnitState

LAST = 10     # nights on the first page
GREEN, AMBER, RED, GREY = "green", "amber", "red", "grey"
COLOURS = (GREEN, AMBER, RED, GREY)


@dataclass(frozen=True)
class Night:
    """A group of units, as the first pages show it."""

    group: bytes
    day: date
    counts: dict[str, int]
    backed_up: int

    @property
    def units(self) -> int:
        return sum(self.counts.values())

    @property
    def colour(self) -> str:
        return next((each for each in (RED, AMBER, GREEN) if self.counts.get(each)), GREY)


def colour_of(row: Delivery, dataset: DataSet) -> str:
    """The colour of a unit."""
    if row.state is UnitState.KILLED:
        return GREY
    if row.state is UnitState.QUARANTINED or (row.state in THERE and any(not ok for ok, _ in row.stages.values())):
        return RED
    done = row.state is UnitState.DELIVERED and Stage.PULL in row.stages and (
        Stage.CHECKSUM in row.stages or not dataset.checksum_file) and (row.backed_up or not dataset.vault)
    return GREEN if done else AMBER


def nights(dataset: DataSet, deliveries: Deliveries, keep: bool = False) -> list[Night]:
    """All nights, the newest first; keep: cache the counts, so that the next call counts only changed nights."""
    found = []
    for group, day, changed, kept in deliveries.groups(dataset.name):
        known = json.loads(kept) if kept else {}
        if known.get("changed") != changed or known.get("vault") != bool(dataset.vault):
            rows = deliveries.of_group(dataset.name, group)
            colours = [colour_of(row, dataset) for row in rows]
            known = {"changed": changed, "vault": bool(dataset.vault), "backed_up": sum(row.backed_up for row in rows),
                     "counts": {each: colours.count(each) for each in COLOURS}}
            if keep:
                deliveries.rendered(dataset.name, group, json.dumps(known))
        found.append(Night(group, day, known["counts"], known["backed_up"]))
    return found


def document(settings: DeliverySettings, deliveries: Deliveries, now: datetime, last: int | None = LAST,
             only: Sequence[bytes] = ()) -> dict[str, Any]:
    """The status for programs. last: so many nights of each data set, None: all. only: these nights, with their
    units."""
    return {"at": rfc3339_of(now), "file": settings.path, "sets": [
        _set_document(dataset, deliveries, last, only) for dataset in settings.sets]}


def _set_document(dataset: DataSet, deliveries: Deliveries, last: int | None, only: Sequence[bytes]) -> dict[str, Any]:
    known = deliveries.set_row(dataset.name)
    attention = sorted(deliveries.to_look_at(dataset.name), key=lambda row: (row.day, row.path), reverse=True)
    found: dict[str, Any] = {
        "name": dataset.name, "source": dataset.source, "destination": dataset.destination,
        "vault": dataset.vault or None,
        "down": None if known is None or not known.down_since else
        {"since": _at(known.down_since), "reason": known.down_what},
        "note": known.note if known is not None else "",
        "looked": _at(known.looked) if known is not None and known.looked else None,
        "units": {state.value: count for state, count in deliveries.counts(dataset.name).items()},
        "attention": [_unit(row, dataset) for row in attention],
        "nights": [_night(each) for each in nights(dataset, deliveries)[:last] if not only or each.group in only],
    }
    if only:
        found["nights"] = [{**_night(each), "members": [_unit(row, dataset) for row in
                                                        deliveries.of_group(dataset.name, each.group)]}
                           for each in nights(dataset, deliveries) if each.group in only]
    return found


def _night(night: Night) -> dict[str, Any]:
    return {"night": os.fsdecode(night.group), "day": night.day.isoformat(), "colour": night.colour,
            "units": night.units, **night.counts, "backed_up": night.backed_up}


def _unit(row: Delivery, dataset: DataSet) -> dict[str, Any]:
    return {"unit": str(row), "night": os.fsdecode(row.grp), "state": row.state.value,
            "colour": colour_of(row, dataset), "reason": row.reason, "tries": row.tries,
            "next_try": _at(row.not_before) if row.not_before else None, "files": row.files,
            "bytes": row.bytes, "request": row.request, "problems": row.problems,
            "stages": {stage.value: {"ok": ok, "at": _at(at)} for stage, (ok, at) in row.stages.items()},
            "backed_up": row.backed_up}


def _at(ns: int) -> str:
    return rfc3339_of(moment_of(ns))


def moment_of(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // NS, UTC)


def rfc3339_of(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
