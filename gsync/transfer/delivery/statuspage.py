"""The status page of delivery: plain files in one folder that need no server, no network and no script.

index.html has each data set with its last nights, YEAR.html a year's calendar and nights, night-*.html the units of a
night with what was done to them and when, transfers.html what else the state folder holds: the queue, archives, what
replication could not sync. Green: all is done; amber: something is still to come; red: somebody has to
look. Names from outside are escaped. status.json says the same for programs. Files are replaced in one step, and only
those whose nights have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from html import escape
from typing import Any

from gsync.base.durable import make_dirs, replace_file
from gsync.base.model import NS, shown
from gsync.base.times import shown_size
from gsync.transfer.delivery.dataset import DataSet, DeliverySettings
from gsync.transfer.delivery.overview import overview
from gsync.transfer.delivery.rows import THERE, Deliveries, Delivery, Stage, UnitState

VERSION = 1   # of what a night's page looks like: another one, and all are written anew
LAST = 10     # nights on the first page
_HEADINGS = {Stage.PULL: "Pulled", Stage.CHECKSUM: "Checksums", Stage.CATCHUP: "Late files", Stage.BACKUP: "Backup"}

GREEN, AMBER, RED, GREY = "green", "amber", "red", "grey"
COLOURS = (GREEN, AMBER, RED, GREY)
_WORST = (RED, AMBER, GREEN, GREY)
_MEANS = {GREEN: "done", AMBER: "in progress", RED: "needs attention", GREY: "killed"}
_SIGNS = {GREEN: "✓", AMBER: "…", RED: "✗", GREY: "–"}


@dataclass(frozen=True)
class Night:
    """What the first pages say of a group of units."""

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
    """All nights, the newest first; keep: remember the counts, so that the next time only changes are counted."""
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
    """The status for programs. last: so many nights of each data set, None: all. only: these, with their units."""
    return {"at": _rfc3339(now), "file": settings.path, "sets": [
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
    return _rfc3339(_moment(ns))


def _moment(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // NS, UTC)


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# files

def write(settings: DeliverySettings, deliveries: Deliveries, now: datetime) -> None:
    """Bring the folder settings.common.page up to date."""
    folder = settings.common.page
    make_dirs(folder, 0o755)
    _replace(folder, "style.css", _STYLE)
    all_nights = {}
    for dataset in settings.sets:
        before = {group: kept for group, _, _, kept in deliveries.groups(dataset.name)}
        all_nights[dataset.name] = nights(dataset, deliveries, keep=True)
        after = {group: kept for group, _, _, kept in deliveries.groups(dataset.name)}
        for night in all_nights[dataset.name]:
            name = night_file(dataset, night.group)
            if before.get(night.group) != after[night.group] or not _is_current(folder, name):
                rows = deliveries.of_group(dataset.name, night.group)
                _replace(folder, name, night_page(dataset, night, rows))
    years = sorted({night.day.year for each in all_nights.values() for night in each}, reverse=True)
    for year in years:
        parts = [(dataset, [night for night in all_nights[dataset.name] if night.day.year == year])
                 for dataset in settings.sets]
        _replace(folder, f"{year}.html", year_page(year, years, parts))
    status = {**document(settings, deliveries, now), "transfers": overview(deliveries.transfers)}
    _replace(folder, "transfers.html", transfers_page(status["transfers"], now))
    _replace(folder, "index.html", index_page(settings, all_nights, status, years, now))
    _replace(folder, "status.json", json.dumps(_json_ready(status), indent=1) + "\n")


def night_file(dataset: DataSet, group: bytes) -> str:
    """The name of a night's page: letters, digits and - . _ only."""
    name = re.sub(rb"[^A-Za-z0-9.-]", lambda match: b"_%02x" % match[0][0], group).decode()
    if len(name) > 120:
        name = name[:80] + "_" + hashlib.sha256(group).hexdigest()[:16]
    return f"night-{dataset.name.replace('@', '_40').replace('+', '_2b')}-{name}.html"


def _is_current(folder: str, name: str) -> bool:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return f'content="{VERSION}"' in file.read(400)
    except OSError:
        return False


def _replace(folder: str, name: str, text: str) -> None:
    """In one step, if it is another text. After a power cut it is written anew, so the disk is not waited for."""
    path = os.path.join(folder, name)
    data = text.encode("utf-8", "backslashreplace")
    with suppress(OSError), open(path, "rb") as file:
        if file.read() == data:
            return
    replace_file(path, data, 0o644, durable=False)


def _json_ready(value: Any) -> Any:
    """Names that are not UTF-8 with their bytes escaped, as they are shown everywhere on the page."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _json_ready(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_ready(item) for item in value]
    return value


# pages

def _text(value: str | bytes) -> str:
    """A text for HTML: names on one line, with what cannot be shown escaped."""
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return escape(shown(raw))


def _page(title: str, body: str, *, back: str = "", refresh: bool = False) -> str:
    again = '<meta http-equiv="refresh" content="60">' if refresh else ""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="version" '
            f'content="{VERSION}">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n{again}'
            f"<title>{escape(title)}</title>\n<link rel=\"stylesheet\" href=\"style.css\">\n</head>\n<body>\n"
            f"<main>\n{back}{body}</main>\n</body>\n</html>\n")


def _legend() -> str:
    return '<p class="legend">' + "".join(
        f'<span class="chip {each}">{_SIGNS[each]}</span> {_MEANS[each]}' for each in COLOURS) + "</p>\n"


def _bar(counts: dict[str, int]) -> str:
    """Shares in their colours, with the numbers."""
    present = [(each, counts[each]) for each in COLOURS if counts.get(each)]
    title = ", ".join(f"{count} {_MEANS[each]}" for each, count in present)
    return f'<div class="bar" role="img" aria-label="{title}" title="{title}">' + "".join(
        f'<span class="{each}" style="flex-grow:{count}">{count}</span>' for each, count in present) + "</div>"


def _nights_table(dataset: DataSet, some: Iterable[Night]) -> str:
    backup = "<th>Backed up</th>" if dataset.vault else ""
    rows = []
    for night in some:
        label = night.day.isoformat() if night.group == night.day.strftime("%Y%m%d").encode() else _text(night.group)
        cell = ""
        if dataset.vault:
            whole = night.backed_up == night.units
            cell = f'<td class="num">{"all" if whole else f"{night.backed_up} of {night.units}"}</td>'
        rows.append(f'<tr><td><span class="chip {night.colour}">{_SIGNS[night.colour]}</span> '
                    f'<a href="{night_file(dataset, night.group)}">{label}</a></td><td class="num">{night.units}</td>'
                    f'<td class="wide">{_bar(night.counts)}</td>{cell}</tr>\n')
    if not rows:
        return '<p class="quiet">No units yet.</p>\n'
    return f"<table><thead><tr><th>Night</th><th>Units</th><th>State</th>{backup}</tr></thead><tbody>\n" + \
        "".join(rows) + "</tbody></table>\n"


def index_page(settings: DeliverySettings, all_nights: dict[str, list[Night]], status: dict[str, Any],
               years: Sequence[int],
               now: datetime) -> str:
    parts = ["<header><h1>Delivery</h1>", f'<p class="quiet">as of {_when(now)}</p></header>\n']
    parts.append(_years_line(years))
    parts.append(_legend())
    for dataset, found in zip(settings.sets, status["sets"], strict=True):
        parts.append(f'<section>\n<h2>{_text(dataset.name)}</h2>\n<p class="quiet">{_text(dataset.source)} → '
                     f"{_text(dataset.destination)}</p>\n")
        if found["down"]:
            since = found["down"]["since"].replace("T", " ").replace("Z", " UTC")
            parts.append(f'<p class="banner red"><b>Down since {since}</b><br>{_text(found["down"]["reason"])}</p>\n')
        elif found["note"]:
            parts.append(f'<p class="banner amber">Waiting: {_text(found["note"])}</p>\n')
        else:
            looked = found["looked"]
            parts.append('<p class="banner green">Source checked '
                         f'{looked.replace("T", " ").replace("Z", " UTC")}</p>\n' if looked else
                         '<p class="banner amber">Source not checked yet</p>\n')
        units = found["units"]
        there = sum(units.get(state.value, 0) for state in THERE)
        moving = sum(count for state, count in units.items()
                     if state not in ("quarantined", "killed", *(each.value for each in THERE)))
        parts.append('<div class="figures">' + "".join(
            f'<div><b class="{colour}">{count}</b>{label}</div>' for count, label, colour in (
                (there, "at the destination", ""), (moving, "to come", ""),
                (units.get("quarantined", 0), "quarantined", "red-text" if units.get("quarantined") else "")))
            + "</div>\n")
        parts.append(_attention(dataset, found["attention"]))
        parts.append(f"<h3>Last {LAST} nights</h3>\n" + _nights_table(dataset, all_nights[dataset.name][:LAST]))
        parts.append("</section>\n")
    parts.append('<section>\n<h2><a href="transfers.html">All transfers</a></h2>\n'
                 + _transfers_figures(status["transfers"]) + "</section>\n")
    return _page("Delivery", "".join(parts), refresh=True)


_FAILED, _DONE = ("FAILED",), ("DONE", "KILLED")


def _colours(states: dict[str, int]) -> dict[str, int]:
    """Transfers by colour: those that failed are red, those that are still to come or tried again amber."""
    red, green = (sum(states.get(state, 0) for state in some) for some in (_FAILED, _DONE))
    return {RED: red, AMBER: sum(states.values()) - red - green, GREEN: green}


def _transfers_figures(found: dict[str, Any]) -> str:
    states = found["states"]
    lost = sum(each["failures"] for each in found["replication"])
    copies = next((sum(each["states"].values()) for each in found["work"] if each["name"] == "replicate"), 0)
    figures = [(_colours(states)[AMBER], "waiting or moving", False),
               (states.get("RETRY", 0), "to be retried", False),
               (copies, "replications pending", False), (states.get("FAILED", 0), "failed", True),
               (len(found["banned"]), "stores banned", True), (lost, "not replicated", True),
               (sum(each["running"] for each in found["archives"]), "archive jobs running", False),
               (sum(each["failed"] for each in found["archives"]), "archive jobs failed", True)]
    return '<div class="figures">' + "".join(
        f'<div><b class="{"red-text" if bad and count else ""}">{count}</b>{label}</div>'
        for count, label, bad in figures) + "</div>\n"


def transfers_page(found: dict[str, Any], now: datetime) -> str:
    """What the queue, the archives and replication have to do, and what of it has failed."""
    body = [f'<header><h1>All transfers</h1><p class="quiet">as of {_when(now)}; gsync queue list --transfers has each '
            f"of them</p></header>\n<section>\n{_transfers_figures(found)}"]
    body += [f'<p class="banner red">Store {_text(each["store"])} is banned'
             f'{" until " + each["until"][:19].replace("T", " ") + " UTC" if each["until"] else ""}: '
             f'{_text(each["reason"])}</p>\n' for each in found["banned"]]
    body.append("</section>\n")
    for title, key in (("By what is done", "work"), ("By owner", "owners"), ("By link", "links")):
        rows = [f'<tr><td>{_text(each["name"].replace(",", " → ") if key == "links" else each["name"])}</td>'
                f'<td class="wide">{_bar(_colours(each["states"]))}</td><td class="quiet">'
                f'{", ".join(f"{count} {state}" for state, count in each["states"].items())}</td></tr>\n'
                for each in found[key]]
        if rows:
            body.append(f"<section>\n<h2>{title}</h2>\n<table>\n{''.join(rows)}</table>\n</section>\n")
    if found["attention"]:
        body.append('<section>\n<h2>Failed or to be retried</h2>\n<ul class="attention">\n' + "".join(
            f'<li><span class="chip {colour}">{_SIGNS[colour]}</span> <b>{_text(each["from"])} → {_text(each["to"])}'
            f'</b> <span class="quiet">{each["what"]}, {each["state"]}, {_text(each["request"])}</span><br>'
            f'{_text(each["reason"])}</li>\n' for each in found["attention"]
            for colour in [RED if each["state"] == "FAILED" else AMBER]) + "</ul>\n</section>\n")
    if found["archives"]:
        body.append("<section>\n<h2>Archives and backups</h2>\n<table><thead><tr><th>Directory</th><th>State</th>"
                    "<th>Entries</th><th>Size</th><th>Changed</th></tr></thead><tbody>\n" + "".join(
                        _archive_row(each) for each in found["archives"]) + "</tbody></table>\n</section>\n")
    if found["replication"]:
        body.append("<section>\n<h2>What replication could not sync</h2>\n<table>\n" + "".join(
            f'<tr><td><span class="chip red">{_SIGNS[RED]}</span> {_text(each["label"])}</td><td class="num">'
            f'{each["failures"]}</td><td class="quiet">{_text(each["id"])}</td></tr>\n'
            for each in found["replication"]) + "</table>\n</section>\n")
    return _page("All transfers", "".join(body), back='<p class="back"><a href="index.html">← delivery</a></p>\n',
                 refresh=True)


def _archive_row(each: dict[str, Any]) -> str:
    colour = AMBER if each["running"] else RED if each["failed"] else GREEN
    doing = f'<br><span class="quiet">{_text(each["stage"])}: {each["entries_done"]:,} of {each["stage_entries"]:,}' \
            "</span>" if each["running"] else f'<br>{_text(each["reason"])}' if each["failed"] else ""
    return (f'<tr><td><span class="chip {colour}">{_SIGNS[colour]}</span> {_text(each["directory"])}</td>'
            f'<td>{each["state"]}{doing}</td><td class="num">{each["entries"]:,}</td><td class="num">'
            f'{_size(each["bytes"])}</td><td class="num">{each["changed"][:19].replace("T", " ")}</td></tr>\n')


def _attention(dataset: DataSet, found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return ""
    most = 20
    lines = [f'<li><span class="chip {each["colour"]}">{_SIGNS[each["colour"]]}</span> '
             f'<b><a href="{night_file(dataset, os.fsencode(each["night"]))}">{_text(each["unit"])}</a></b> '
             f'<span class="quiet">{each["state"]}</span><br>{_text(each["reason"])}</li>\n'
             for each in found[:most]]
    if len(found) > most:
        lines.append(f'<li class="quiet">and {len(found) - most} more; see the nights</li>\n')
    is_open = " open" if len(found) <= most else ""
    count = f"{len(found)} units need" if len(found) > 1 else "1 unit needs"
    return (f'<details{is_open}><summary>{count} attention</summary>\n'
            f'<ul class="attention">\n{"".join(lines)}</ul></details>\n')


def _years_line(years: Sequence[int], here: int | None = None) -> str:
    links = [f'<b aria-current="page">{year}</b>' if year == here else f'<a href="{year}.html">{year}</a>'
             for year in years]
    return f'<nav>{"".join(links)}</nav>\n' if links else ""


def year_page(year: int, years: Sequence[int], parts: Sequence[tuple[DataSet, Sequence[Night]]]) -> str:
    body = [f"<header><h1>{year}</h1></header>\n", _years_line(years, year), _legend()]
    for dataset, some in parts:
        body.append(f"<section>\n<h2>{_text(dataset.name)}</h2>\n{_calendar(year, dataset, some)}"
                    f"<h3>All nights</h3>\n{_nights_table(dataset, some)}</section>\n")
    return _page(f"Delivery {year}", "".join(body), back='<p class="back"><a href="index.html">← all</a></p>\n')


def _calendar(year: int, dataset: DataSet, some: Sequence[Night]) -> str:
    """A square for each day, twelve months beside each other."""
    by_day: dict[date, Night] = {}
    for night in some:
        worst = by_day.get(night.day)
        if worst is None or _WORST.index(night.colour) < _WORST.index(worst.colour):
            by_day[night.day] = night
    months = []
    for month in range(1, 13):
        first = date(year, month, 1)
        cells = ["<i></i>"] * first.weekday()
        day = first
        while day.month == month:
            found = by_day.get(day)
            title = day.isoformat() + (f": {found.units} units, {_MEANS[found.colour]}" if found else ": none")
            cells.append(f'<a class="{found.colour}" href="{night_file(dataset, found.group)}" title="{title}">'
                         f"{day.day}</a>" if found else f'<i class="none" title="{title}">{day.day}</i>')
            day += timedelta(days=1)
        months.append(f'<div class="month"><h4>{first.strftime("%B")}</h4><div class="days">{"".join(cells)}</div>'
                      "</div>")
    return f'<div class="calendar">{"".join(months)}</div>\n'


def night_page(dataset: DataSet, night: Night, rows: Sequence[Delivery]) -> str:
    stages = [Stage.PULL, *([Stage.CHECKSUM] if dataset.checksum_file else []), Stage.CATCHUP,
              *([Stage.BACKUP] if dataset.vault else [])]
    head = "".join(f"<th>{_HEADINGS[stage]}</th>" for stage in stages)
    body = [f"<header><h1>{_text(night.group)}</h1><p class=\"quiet\">{_text(dataset.name)}, {night.units} units; "
            f"times are UTC</p></header>\n{_legend()}{_bar(night.counts)}\n<section>\n"
            "<table class=\"units\"><thead><tr><th>Unit</th>"
            f"<th>State</th><th>Files</th><th>Size</th>{head}</tr></thead><tbody>\n"]
    for row in rows:
        colour = colour_of(row, dataset)
        rest = row.path.partition(b"/")[2] if row.path.startswith(night.group + b"/") else row.path
        cells = "".join(_stage_cell(row, stage) for stage in stages)
        body.append(f'<tr id="{escape(hashlib.sha256(row.path).hexdigest()[:12])}"><td><span class="chip {colour}">'
                    f"{_SIGNS[colour]}</span>&nbsp;<b>{_text(rest)}</b></td><td>{row.state.value}</td>"
                    f'<td class="num">{row.files or ""}</td><td class="num">{_size(row.bytes)}</td>{cells}</tr>\n')
        if row.reason or row.problems:
            body.append(f'<tr class="why {colour}"><td colspan="{4 + len(stages)}">{_why(row)}</td></tr>\n')
    body.append("</tbody></table>\n</section>\n")
    year = night.day.year
    back = f'<p class="back"><a href="index.html">← all</a> <a href="{year}.html">← {year}</a></p>\n'
    return _page(f"Delivery {shown(night.group)}", "".join(body), back=back)


def _stage_cell(row: Delivery, stage: Stage) -> str:
    if stage is Stage.BACKUP and not row.backed_up and row.stages.get(stage, (False, 0))[0]:
        return '<td class="cell amber">again</td>'
    if stage not in row.stages:
        return '<td class="cell none">–</td>'
    ok, at = row.stages[stage]
    colour = GREEN if ok else RED
    return f'<td class="cell {colour}"><span>{_SIGNS[colour]}</span> {_when(_moment(at), "")}</td>'


def _why(row: Delivery) -> str:
    parts = [f"<p>{_text(row.reason)}</p>"] if row.reason else []
    if row.not_before and row.state is UnitState.WAITING:
        parts.append(f'<p class="quiet">try {row.tries + 1} at {_when(_moment(row.not_before))}</p>')
    titles = {"list": "The list", "missing": "Missing", "extra": "Not in the list", "mismatching": "Checksum differs",
              "odd": "Not a file or directory"}
    for what, names in row.problems.items():
        if names and names != [row.reason]:
            items = "".join(f"<li><code>{_text(name)}</code></li>" for name in names)
            parts.append(f"<details><summary>{titles.get(what, escape(what))}: {len(names)}</summary><ul>{items}</ul>"
                         "</details>")
    return "".join(parts)


def _when(moment: datetime, zone: str = "&nbsp;UTC") -> str:
    return f'<time datetime="{_rfc3339(moment)}">{moment.strftime("%Y-%m-%d %H:%M:%S")}{zone}</time>'


def _size(count: float) -> str:
    return shown_size(count).replace(" ", "&nbsp;") if count else ""


_STYLE = """\
:root { --fg: #1d2430; --quiet: #667085; --bg: #f5f6f8; --card: #fff; --line: #e3e6eb; --link: #1f5fbf;
  --green: #1e8449; --green-bg: #d9f0e1; --amber: #9a6700; --amber-bg: #fdf0c9; --red: #b3261e; --red-bg: #fbdedb;
  --grey: #5f6775; --grey-bg: #e4e7ec; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e9ef; --quiet: #98a2b3; --bg: #14181f; --card: #1d232d;
  --line: #323a47; --link: #8ab4f8; --green: #7ee0a1; --green-bg: #163d27; --amber: #ffd479; --amber-bg: #463609;
  --red: #ff9d94; --red-bg: #521d19; --grey: #b5bdc9; --grey-bg: #363d49; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 1.5rem; }
header { display: flex; align-items: baseline; gap: 1rem; flex-wrap: wrap; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 0 0 .2rem; font-size: 1.25rem; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; } h4 { margin: 0 0 .3rem; font-size: .8rem; color: var(--quiet); }
p { margin: .3rem 0; } a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.quiet { color: var(--quiet); font-size: .9rem; }
.back a { margin-right: 1rem; }
nav { display: flex; gap: .5rem; flex-wrap: wrap; margin: .8rem 0; }
nav a, nav b { padding: .15rem .7rem; border: 1px solid var(--line); border-radius: 1rem; background: var(--card); }
.legend { display: flex; gap: .4rem; flex-wrap: wrap; align-items: center; font-size: .85rem; color: var(--quiet); }
.legend .chip:not(:first-child) { margin-left: .8rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem;
  margin: 1rem 0; overflow-x: auto; }
.green { background: var(--green-bg); color: var(--green); }
.amber { background: var(--amber-bg); color: var(--amber); }
.red { background: var(--red-bg); color: var(--red); } .grey { background: var(--grey-bg); color: var(--grey); }
.red-text { color: var(--red); }
.chip { display: inline-block; width: 1.3rem; text-align: center; border-radius: .35rem; font-weight: 700; }
.banner { padding: .45rem .8rem; border-radius: .4rem; margin: .6rem 0; overflow-wrap: anywhere; }
.figures { display: flex; gap: 2rem; margin: .8rem 0; flex-wrap: wrap; }
.figures div { color: var(--quiet); font-size: .85rem; } .figures b { display: block; font-size: 1.6rem; }
.figures b:not(.red-text) { color: var(--fg); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-size: .78rem; color: var(--quiet); font-weight: 600; padding: .3rem .5rem; }
td { padding: .35rem .5rem; border-top: 1px solid var(--line); vertical-align: top; }
td:first-child { overflow-wrap: anywhere; } .num { white-space: nowrap; font-variant-numeric: tabular-nums; }
.wide { width: 60%; }
.bar { display: flex; border-radius: .35rem; overflow: hidden; gap: 2px; min-width: 8rem; }
.bar span { min-width: 1.8rem; text-align: center; font-size: .8rem; font-weight: 600; padding: .1rem .3rem; }
.cell { font-size: .82rem; white-space: nowrap; } .cell.none { color: var(--quiet); }
.cell span { font-weight: 700; }
table.units td:first-child { min-width: 9rem; }
tr.why td { border-top: 0; padding: .3rem 1rem .6rem 2.3rem; font-size: .88rem; overflow-wrap: anywhere; }
tr.why { background: none; } tr.why.red td { background: none; color: var(--red); }
tr.why.amber td { color: var(--amber); } tr.why.grey td, tr.why.green td { color: var(--quiet); background: none; }
tr.why p { margin: 0; } tr.why ul { margin: .2rem 0; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
details { margin: .3rem 0; } summary { cursor: pointer; font-weight: 600; }
.attention { list-style: none; margin: .4rem 0; padding: 0; }
.attention li { padding: .35rem 0; border-top: 1px solid var(--line); overflow-wrap: anywhere; font-size: .92rem; }
.calendar { display: grid; grid-template-columns: repeat(6, 1fr); gap: 1rem; margin: .8rem 0; }
@media (max-width: 1100px) { .calendar { grid-template-columns: repeat(4, 1fr); } }
@media (max-width: 760px) { .calendar { grid-template-columns: repeat(2, 1fr); } }
.days { display: grid; grid-template-columns: repeat(7, 1fr); gap: 3px; }
.days a, .days i { display: block; text-align: center; font-size: .75rem; font-style: normal; line-height: 1.6rem;
  border-radius: .25rem; } .days a { font-weight: 700; } .days .none { color: var(--quiet); opacity: .55; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
