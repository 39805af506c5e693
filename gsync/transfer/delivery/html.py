"""The pages of the delivery status as HTML that needs no server, no network and no script.

An index with each data set and its last nights, a page for each year and each night, one for all other transfers. All
outside text is escaped. Not here: what the colours mean (status), which files are stale (statuspage).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from html import escape
from typing import Any

from gsync.base.model import shown
from gsync.base.times import shown_size
from gsync.transfer.delivery.dataset import DataSet, DeliverySettings
from gsync.transfer.delivery.rows import THERE, Delivery, Stage, UnitState
from gsync.transfer.delivery.status import (
    AMBER,
    COLOURS,
    GREEN,
    GREY,
    LAST,
    RED,
    Night,
    colour_of,
    moment_of,
    rfc3339_of,
)

VERSION = 1   # of a night's page: after a change every page is written anew
_HEADINGS = {Stage.PULL: "Pulled", Stage.CHECKSUM: "Checksums", Stage.CATCHUP: "Late files", Stage.BACKUP: "Backup"}

_WORST = (RED, AMBER, GREEN, GREY)
_MEANS = {GREEN: "done", AMBER: "in progress", RED: "needs attention", GREY: "killed"}
_SIGNS = {GREEN: "✓", AMBER: "…", RED: "✗", GREY: "–"}


def night_file(dataset: DataSet, group: bytes) -> str:
    """The name of a night's page: letters, digits and - . _ only."""
    name = re.sub(rb"[^A-Za-z0-9.-]", lambda match: b"_%02x" % match[0][0], group).decode()
    if len(name) > 120:
        name = name[:80] + "_" + hashlib.sha256(group).hexdigest()[:16]
    return f"night-{dataset.name.replace('@', '_40').replace('+', '_2b')}-{name}.html"


def _text(value: str | bytes) -> str:
    """A text for HTML: names on one line, unprintable characters escaped."""
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
    """Transfers by colour: failed ones are red, waiting and retried ones amber."""
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
    """The open and failed work of the queue, the archives and replication."""
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
    """A square for each day, with the twelve months side by side."""
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
    return f'<td class="cell {colour}"><span>{_SIGNS[colour]}</span> {_when(moment_of(at), "")}</td>'


def _why(row: Delivery) -> str:
    parts = [f"<p>{_text(row.reason)}</p>"] if row.reason else []
    if row.not_before and row.state is UnitState.WAITING:
        parts.append(f'<p class="quiet">try {row.tries + 1} at {_when(moment_of(row.not_before))}</p>')
    titles = {"list": "The list", "missing": "Missing", "extra": "Not in the list", "mismatching": "Checksum differs",
              "odd": "Not a file or directory"}
    for what, names in row.problems.items():
        if names and names != [row.reason]:
            items = "".join(f"<li><code>{_text(name)}</code></li>" for name in names)
            parts.append(f"<details><summary>{titles.get(what, escape(what))}: {len(names)}</summary><ul>{items}</ul>"
                         "</details>")
    return "".join(parts)


def _when(moment: datetime, zone: str = "&nbsp;UTC") -> str:
    return f'<time datetime="{rfc3339_of(moment)}">{moment.strftime("%Y-%m-%d %H:%M:%S")}{zone}</time>'


def _size(count: float) -> str:
    return shown_size(count).replace(" ", "&nbsp;") if count else ""
