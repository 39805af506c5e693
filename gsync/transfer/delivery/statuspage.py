"""The files of the status page: index.html, a page for each year and night, transfers.html, status.json, style.css.

They are in one folder, for any web server or to open as files. Each is replaced in one step, and only if its content
changed; pages of unchanged nights are not even rendered. Not here: the content of the pages (html, status).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime
from importlib import resources
from typing import Any

from gsync.base.durable import make_dirs, replace_file
from gsync.transfer.delivery.dataset import DeliverySettings
from gsync.transfer.delivery.html import VERSION, index_page, night_file, night_page, transfers_page, year_page
from gsync.transfer.delivery.overview import overview
from gsync.transfer.delivery.rows import Deliveries
from gsync.transfer.delivery.status import document, nights


def write(settings: DeliverySettings, deliveries: Deliveries, now: datetime) -> None:
    """Update the folder settings.common.page."""
    folder = settings.common.page
    make_dirs(folder, 0o755)
    _replace(folder, "style.css", resources.files(__package__).joinpath("status.css").read_text("utf-8"))
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


def _is_current(folder: str, name: str) -> bool:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return f'content="{VERSION}"' in file.read(400)
    except OSError:
        return False


def _replace(folder: str, name: str, text: str) -> None:
    """Replace the file in one step, if the text differs. Does not wait for the disk: after a power cut it is written
    anew."""
    path = os.path.join(folder, name)
    data = text.encode("utf-8", "backslashreplace")
    with suppress(OSError), open(path, "rb") as file:
        if file.read() == data:
            return
    replace_file(path, data, 0o644, durable=False)


def _json_ready(value: Any) -> Any:
    """Escape the bytes of names that are not UTF-8, as everywhere on the page."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _json_ready(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_ready(item) for item in value]
    return value
