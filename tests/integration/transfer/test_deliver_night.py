"""A whole night: damaged units, late files, a missing list, hostile names, a broken link, two daemons, kill -9.

Each unit ends delivered once or quarantined with its reason, and what comes after finds nothing to do.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from gsync.transfer.queue.transfers import Transfers
from lab.nights import HOSTILE, Nights, contents, night_of
from lab.sshd import HOST, Sshd


class Night:
    """`count` units of the night before the last, by what is wrong with them."""

    def __init__(self, nights: Nights, count: int) -> None:
        self.nights, self.name = nights, night_of(2)
        chance = random.Random(count)
        self.units: list[bytes] = []
        self.reasons: dict[bytes, str] = {}
        self.late: list[bytes] = []
        for number in range(count):
            files = None
            if number % 4 == 0:
                files = {name: name * 100 for name in chance.sample(HOSTILE, 4)} | {b"d d/" + HOSTILE[1]: b"x" * 1000}
            elif number % 7 == 0:
                files = {b"large.fits": chance.randbytes(2 << 20), b"empty": b""}
            listed = number % 10 != 3
            unit = nights.make(self.name, number, files, listed=listed, ready=False)
            if not listed:
                self.reasons[unit] = f"no checksum list checksum-{number:08}.sha256sum"
            elif number % 10 == 5:
                name = sorted(name for name, content in contents(self._place(unit)).items()
                              if content and not name.startswith(b"checksum-"))[0]
                nights.write(unit, name, b"damaged")
                self.reasons[unit] = "checksum differs: "
            elif number % 10 == 7:
                nights.write(unit, b"un listed\n", b"extra")
                self.reasons[unit] = "not in the list: un listed\\n"
            elif number % 10 == 8:
                self.late.append(unit)
            self.units.append(unit)

    def _place(self, unit: bytes) -> bytes:
        return os.path.join(os.fsencode(self.nights.data), unit)

    def make_ready(self, units: list[bytes]) -> None:
        for unit in units:
            self.nights.link(unit)

    def make_late(self) -> None:
        for unit in self.late:
            self.nights.write(unit, b"late/file of the morning", unit)
            self.nights.write_list(unit)

    def settled(self) -> bool:
        states = self.nights.states()
        return states == {"delivered": len(self.units) - len(self.reasons), "quarantined": len(self.reasons)}

    def check(self) -> None:
        """Everything as promised: at the destination, in quarantine, in the vault, in the database, on the page."""
        nights, found = self.nights, self.nights.units(self.name)
        assert len(found) == len(self.units)
        for unit in self.units:
            row, place = found[os.fsdecode(unit)], nights.destination / os.fsdecode(unit)
            if unit in self.reasons:
                assert row["state"] == "quarantined"
                assert row["reason"].startswith(self.reasons[unit])
                assert not place.exists()
                assert contents(os.fsencode(nights.quarantine / os.fsdecode(unit))) == contents(self._place(unit))
                assert json.loads((nights.quarantine / (os.fsdecode(unit) + ".reason.json")).read_text())["reason"] \
                    == row["reason"]
            else:
                assert (row["state"], row["colour"], row["reason"]) == ("delivered", "green", "")
                assert nights.is_as_source(unit)
                assert nights.in_vault(unit) == contents(self._place(unit))
        assert nights.leftovers() == []
        transfers = Transfers(str(nights.home))
        try:
            assert len(list(transfers.requests())) == len(self.units)  # each once
        finally:
            transfers.close()
        page = (nights.page / f"night-raw-{self.name}.html").read_text()
        assert page.count('class="chip red"') == 1 + len(self.reasons)
        assert page.count('class="chip green"') == 1 + len(self.units) - len(self.reasons)


@contextmanager
def link_to(nights: Nights, way: str) -> Iterator[Sshd | None]:
    """The source over a real sshd, or on this host."""
    with Sshd(nights.folder / "sshd") if way != "local" else nullcontext() as server:
        common: dict[str, object] = {"max-tries": 30, "timeout": "20s"}
        if server is not None:
            nights.source = f"{HOST}:{nights.ready}"
            common["ssh-config"] = server.client_config
        nights.write_ini(common=common, method="rsync" if way == "rsync" else "stream")
        yield server


def the_night(folder: Path, way: str, count: int, kills: int) -> None:
    nights = Nights(folder)
    night = Night(nights, count)
    chance = random.Random(kills)
    half = len(night.units) // 2
    with link_to(nights, way) as server:
        night.make_ready(night.units[:half])
        daemon = nights.start()
        try:
            nights.wait_for(lambda: nights.log().count(" delivered ") >= 2, "the first delivery")
            assert f"pid {daemon.pid}" in nights.run("run", code=3).stderr
            if server is not None:  # the link breaks, stays broken for a while, and is there again
                night.make_ready(night.units[half:half + 2])
                server.drop_connections()
                server.stop()
                nights.wait_for(lambda: nights.status()["sets"][0]["down"], "that the source is down")
                server.start()
            night.make_ready(night.units)
            for _ in range(kills):
                time.sleep(chance.uniform(0.3, 2.0))
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
                daemon = nights.start()
                if server is not None and chance.random() < 0.5:
                    server.drop_connections()
            nights.wait_for(night.settled, "that all is delivered or quarantined", nights.states)
            night.make_late()
            nights.run("catchup", night.name)
            nights.wait_for(lambda: all(nights.is_as_source(unit) for unit in night.late), "the late files")
            nights.wait_for(lambda: not any(unit["colour"] == "amber" for unit in nights.units(night.name).values()),
                            "the backup")
        finally:
            assert nights.end(daemon) == 0
        for _ in range(2):  # the days after
            done = nights.run("once", code=1)
            assert "0 delivered, 0 quarantined, 0 with late files, 0 backed up" in done.stdout
        night.check()


WAYS = ["local", "ssh", "rsync"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_small_night(tmp_path: Path, way: str) -> None:
    the_night(tmp_path, way, 20, 2)


@pytest.mark.soak
@pytest.mark.parametrize("way", WAYS)
def test_a_night_of_200_units(tmp_path: Path, way: str) -> None:
    the_night(tmp_path, way, 200, 20)
