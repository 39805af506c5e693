"""gsync deliver: what comes to its destination, what is put aside, and what is not inherited from DESI's daemon.

Tests named test_desi_NN_... show that a known mistake of that daemon is not made here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gsync.base.errors import Stopped
from gsync.transfer.delivery import dataset, placement
from gsync.transfer.delivery.checksums import line_of
from gsync.transfer.delivery.rounds import order
from gsync.transfer.delivery.rows import Stage
from gsync.transfer.delivery.source import Listing, ReadyFolder
from gsync.transfer.queue.orders import Orders
from gsync.transfer.stores.dir import DirStore
from gsync.transfer.stores.vault import VaultStore
from lab.nights import HOSTILE, Nights, contents, night_of, remove


@pytest.fixture
def nights(tmp_path: Path) -> Iterator[Nights]:
    found = Nights(tmp_path)
    yield found
    assert found.leftovers() == []


def modes(folder: Path) -> set[tuple[str, int]]:
    return {("dir" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode))
            for path in [folder, *folder.rglob("*")]}


# delivery

def test_units_arrive_whole_verified_and_locked(nights: Nights) -> None:
    good = [nights.make(night_of(0), number) for number in range(3)]
    hostile = nights.make(night_of(0), 9, {name: name for name in HOSTILE} | {b"deep/er/" + n: n for n in HOSTILE})
    (summary,) = nights.round()
    assert (summary.delivered, summary.quarantined, summary.down) == (4, 0, "")
    assert all(nights.is_as_source(unit) for unit in [*good, hostile])
    assert modes(nights.destination / os.fsdecode(hostile)) == {("dir", 0o2750), ("file", 0o440)}
    assert {unit["state"] for unit in nights.units().values()} == {"delivered"}
    assert nights.round()[0].delivered == 0


def test_what_is_wrong_is_put_aside_with_its_reason(nights: Nights) -> None:
    night = night_of(0)
    unlisted = nights.make(night, 1, listed=False)
    changed, extra, missing = (nights.make(night, number) for number in (2, 3, 4))
    nights.write(changed, b"sub/guide.txt", b"another")
    nights.write(extra, b"more and *more\n", b"x")
    os.unlink(nights.data / os.fsdecode(missing) / "sub/guide.txt")
    odd = nights.make(night, 5)
    os.mkfifo(nights.data / os.fsdecode(odd) / "fifo")
    nights.make(night, 6)
    (summary,) = nights.round()
    assert (summary.delivered, summary.quarantined) == (1, 5)
    found = {name[-1]: unit["reason"] for name, unit in nights.units().items()}
    assert "no checksum list checksum-00000001.sha256sum" in found["1"]
    assert found["2"] == "checksum differs: sub/guide.txt"
    assert found["3"] == "not in the list: more and *more\\n"
    assert found["4"] == "missing: sub/guide.txt"
    assert "not a file or directory: fifo" in found["5"]
    assert contents(os.fsencode(nights.quarantine / os.fsdecode(changed))) == contents(
        os.fsencode(nights.data / os.fsdecode(changed)))
    reason = json.loads((nights.quarantine / (os.fsdecode(unlisted) + ".reason.json")).read_text())
    assert reason["reason"] == found["1"]


def test_on_error_deliver_does_as_desi_did(nights: Nights) -> None:
    nights.write_ini(on_error="deliver")
    unit = nights.make(night_of(0), 1)
    nights.write(unit, b"sub/guide.txt", b"another")
    assert nights.round()[0].delivered == 1
    assert nights.is_as_source(unit)
    (found,) = nights.units().values()
    assert (found["state"], found["colour"], found["reason"]) == (
        "delivered", "red", "checksum differs: sub/guide.txt")
    assert not found["stages"]["checksum"]["ok"]


def test_a_quarantined_unit_is_delivered_once_its_source_is_right(nights: Nights) -> None:
    unit = nights.make(night_of(1), 1, listed=False)
    nights.round(now=datetime.now(UTC) - timedelta(days=1))
    assert nights.states() == {"quarantined": 1}
    nights.write_list(unit)
    assert nights.round("catchup", datetime.now(UTC) + timedelta(days=1))[0].caught_up == 1
    nights.round()
    assert nights.states() == {"delivered": 1}
    assert nights.is_as_source(unit)
    assert not any(nights.quarantine.rglob("*"))


def test_what_is_at_the_destination_already_is_left_alone_and_verified_later(nights: Nights) -> None:
    good, bad = (nights.make(night_of(2), number) for number in (1, 2))
    for unit in (good, bad):
        shutil.copytree(nights.data / os.fsdecode(unit), nights.destination / os.fsdecode(unit))
    damaged = nights.destination / os.fsdecode(bad) / "sub/guide.txt"
    times = damaged.stat()
    damaged.write_bytes(damaged.read_bytes()[::-1])
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = damaged.stat().st_ino
    nights.round("backup")
    assert nights.states() == {}
    nights.round()
    found = nights.units()
    assert {unit["state"] for unit in found.values()} == {"delivered"}
    assert [unit["reason"] for unit in found.values()] == ["", "checksum differs: sub/guide.txt"]
    assert damaged.stat().st_ino == before


def test_links_within_a_unit_bring_what_they_lead_to(nights: Nights) -> None:
    unit = nights.make(night_of(0), 1, listed=False, ready=False)
    place = nights.data / os.fsdecode(unit)
    calibration = nights.folder / "source/calibration"
    calibration.mkdir()
    (calibration / "flat.fits").write_bytes(b"flat")
    (place / "cal").symlink_to("../../../calibration")
    (place / "latest.fits").symlink_to(f"fibermap-{place.name}.fits")
    nights.write_list(unit)
    with open(nights.list_path(unit), "ab") as file:
        file.write(line_of(b"cal/flat.fits", hashlib.sha256(b"flat").hexdigest()))
    nights.link(unit)
    assert nights.round()[0].delivered == 1
    place = nights.destination / os.fsdecode(unit)
    assert (place / "cal/flat.fits").read_bytes() == b"flat"
    assert (place / "latest.fits").read_bytes() == (place / f"fibermap-{place.name}.fits").read_bytes()
    assert not any(path.is_symlink() for path in place.rglob("*"))


def test_links_in_a_circle_or_to_nowhere_are_reasons(nights: Nights) -> None:
    circle, nowhere = (nights.make(night_of(0), number) for number in (1, 2))
    (nights.data / os.fsdecode(circle) / "up").symlink_to(".")
    (nights.data / os.fsdecode(nowhere) / "gone").symlink_to("nowhere")
    nights.round()
    assert [unit["reason"].rpartition(": ")[2] for unit in nights.units().values()] == ["up", "gone"]


def test_what_fits_no_unit_is_logged_and_holds_up_nothing(nights: Nights, caplog: pytest.LogCaptureFixture) -> None:
    nights.make(night_of(0), 1)
    nights.link(b"20261301/00000001")
    nights.link(night_of(0).encode() + b"/latest")
    assert nights.round()[0].delivered == 1


def test_another_pattern(nights: Nights) -> None:
    nights.write_ini(unit="{sample}", checksum_file="SHA256SUMS")
    place = nights.data / "sample one"
    place.mkdir()
    (place / "x").write_bytes(b"x")
    (place / "SHA256SUMS").write_text(
        "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881  x")
    (nights.ready / "sample one").symlink_to("../data/sample one")
    assert nights.round()[0].delivered == 1
    assert (nights.destination / "sample one/x").read_bytes() == b"x"


def test_nights_before_the_first_one_are_left_alone(nights: Nights) -> None:
    nights.write_ini(first_night=night_of(1))
    nights.make(night_of(2), 1)
    nights.make(night_of(1), 2)
    assert nights.round()[0].delivered == 1


# late files

def test_late_files_come_in_one_step_and_are_backed_up_again(nights: Nights) -> None:
    unit = nights.make(night_of(1), 1)
    nights.round(now=datetime.now(UTC) - timedelta(days=1))
    nights.round("backup", datetime.now(UTC) + timedelta(days=1))
    place = nights.destination / os.fsdecode(unit)
    kept = (place / "sub/guide.txt").stat().st_ino
    assert modes(place) == {("dir", 0o2550), ("file", 0o440)}
    nights.write(unit, b"late/one.fits", b"late")
    nights.write(unit, b"fibermap-00000001.fits", b"better")
    nights.write_list(unit)
    nights.run("catchup", night_of(1))
    assert nights.is_as_source(unit)
    assert (place / "sub/guide.txt").stat().st_ino == kept
    (found,) = nights.units().values()
    assert (found["state"], found["backed_up"]) == ("delivered", False)
    nights.run("backup")
    (found,) = nights.units().values()
    assert (found["backed_up"], found["colour"]) == (True, "green")
    assert found["stages"]["backup"]["at"] >= found["stages"]["catchup"]["at"]
    assert nights.in_vault(unit) == contents(os.fsencode(nights.data / os.fsdecode(unit)))


def test_a_unit_that_would_leave_too_little_free_waits_and_costs_no_try(nights: Nights) -> None:
    nights.make(night_of(0), 1)
    nights.write_ini(min_free="1000000T")
    (summary,) = nights.round()
    assert "min-free" in summary.down
    (found,) = nights.units().values()
    assert (found["state"], found["tries"]) == ("waiting", 0)
    assert nights.status()["sets"][0]["down"]["reason"] == summary.down
    assert not list(nights.staging.rglob("*.fits"))
    nights.write_ini(min_free="1K")
    assert nights.round()[0].delivered == 1


# audit

def rot(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes of the same number, at the same times."""
    was = path.stat()
    path.write_bytes(path.read_bytes().replace(old, new))
    path.chmod(stat.S_IMODE(was.st_mode))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


@pytest.fixture
def kept(nights: Nights) -> Nights:
    """Two units of one night, delivered and in the vault."""
    for number in (1, 2):
        nights.make(night_of(1), number)
    nights.round(now=datetime.now(UTC) - timedelta(days=1))
    nights.round("backup", datetime.now(UTC) + timedelta(days=1))
    return nights


def test_an_audit_finds_what_has_changed_at_the_destination(kept: Nights) -> None:
    (bad, _), place = kept.units(), kept.destination
    assert "2 audited" in kept.run("audit").stdout
    rot(place / bad / "sub/guide.txt", b"guide", b"GUIDE")
    assert [line["what"] for line in json.loads(kept.run("audit", "--dry-run", "--json").stdout)] == ["audit"] * 2
    assert {unit["colour"] for unit in kept.units().values()} == {"green"}
    kept.run("audit", night_of(1), code=1)
    units = kept.units()
    assert (units[bad]["colour"], units[bad]["reason"]) == ("red", "audit: checksum differs: sub/guide.txt")
    assert [unit["colour"] for name, unit in units.items() if name != bad] == ["green"]
    assert "no units of 20010101" in kept.run("status", "20010101").stdout
    rot(place / bad / "sub/guide.txt", b"GUIDE", b"guide")
    (place / bad).rename(place / "away")
    kept.run("audit", code=1)
    assert "no such directory" in kept.units()[bad]["reason"]
    (place / "away").rename(place / bad)
    kept.run("audit")
    assert {(unit["colour"], unit["reason"]) for unit in kept.units().values()} == {("green", "")}


def test_an_audit_finds_what_the_vault_has_lost_and_the_next_backup_puts_it_again(kept: Nights) -> None:
    (tar,) = kept.vault.rglob("*.tar")
    rot(tar, b"guide 00000002", b"GUIDE 00000002")
    kept.run("audit", code=1)
    (good, lost) = kept.units().values()
    assert (good["backed_up"], lost["backed_up"], lost["colour"]) == (True, False, "red")
    assert lost["reason"] == "backup: missing or damaged in the vault: sub/guide.txt"
    kept.run("backup")
    kept.run("audit")
    assert {(unit["colour"], unit["backed_up"]) for unit in kept.units().values()} == {("green", True)}


def test_an_order_given_while_the_daemon_looks_is_not_lost(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source was listed before the late file came, and the look ends after the order for another one."""
    unit = nights.make(night_of(1), 1)
    nights.round(now=datetime.now(UTC) - timedelta(days=1))
    real = ReadyFolder.listing

    def listing(self: ReadyFolder, path: bytes) -> Listing | None:
        found = real(self, path)
        if not (nights.data / os.fsdecode(unit) / "late.fits").exists():
            nights.write(unit, b"late.fits", b"late")
            nights.write_list(unit)
            order(dataset.read(str(nights.ini), nights.env), str(nights.home), Stage.CATCHUP, [])
        return found

    monkeypatch.setattr(ReadyFolder, "listing", listing)
    assert nights.round(now=datetime.now(UTC) + timedelta(days=1))[0].caught_up == 0
    assert nights.round(now=datetime.now(UTC) + timedelta(days=1))[0].caught_up == 1
    assert nights.is_as_source(unit)


def test_late_files_that_are_wrong_do_not_touch_what_was_delivered(nights: Nights) -> None:
    unit = nights.make(night_of(1), 1)
    nights.round(now=datetime.now(UTC) - timedelta(days=1))
    before = contents(os.fsencode(nights.destination) + b"/" + unit)
    nights.write(unit, b"late.fits", b"late")  # and the list does not know it
    nights.run("catchup", code=1)
    assert contents(os.fsencode(nights.destination) + b"/" + unit) == before
    (found,) = nights.units().values()
    assert (found["state"], found["colour"]) == ("delivered", "red")
    assert "late files rejected: not in the list: late.fits" in found["reason"]
    nights.write_list(unit)
    nights.run("catchup")
    assert nights.is_as_source(unit)
    (found,) = nights.units().values()
    assert found["reason"] == ""


def test_a_source_that_no_longer_keeps_a_unit_is_no_error(nights: Nights) -> None:
    unit = nights.make(night_of(2), 1)
    nights.round()
    remove(nights.data)
    (nights.ready / os.fsdecode(unit)).unlink()
    nights.run("catchup")
    assert nights.states() == {"delivered": 1}


# the command

def test_the_second_daemon_is_refused_with_the_pid_of_the_first(nights: Nights) -> None:
    nights.make(night_of(0), 1)
    daemon = nights.start()
    try:
        nights.wait_for(lambda: "delivered" in nights.log())
        for verb in ("run", "once"):
            done = nights.run(verb, code=3)
            assert done.stderr.strip().splitlines()[-1].endswith(f"is running already, pid {daemon.pid}")
        other = Nights(nights.folder / "other")  # another state directory and file, the same staging
        other.write_ini(staging=nights.staging)
        assert f"pid {daemon.pid}" in other.run("once", code=3).stderr
        assert nights.status()["pid"] == daemon.pid
        done = nights.run("catchup")
        assert f"the daemon (pid {daemon.pid}) does it" in done.stdout
    finally:
        assert nights.end(daemon) == 0
    assert "ended why='stopped by a signal'" in nights.log()
    nights.run("once")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_once_ends_by_the_signal_that_stopped_it(nights: Nights, number: int) -> None:
    """While rsync, a stand-in that never ends, has the unit."""
    program = nights.folder / "rsync"
    program.write_text(f"#!/bin/sh\ntouch {nights.folder}/started\nexec sleep 1000\n")
    program.chmod(0o755)
    nights.write_ini(common={"rsync-command": program}, method="rsync")
    nights.make(night_of(0), 1)
    with subprocess.Popen(nights.argv("once"), env=nights.env, stderr=subprocess.DEVNULL) as process:
        nights.wait_for((nights.folder / "started").exists)
        process.send_signal(number)
        assert process.wait(60) == -number
    assert nights.states() == {"waiting": 1}
    (nights.folder / "stop").touch()
    assert "kill file" in nights.run("once").stdout
    assert nights.states() == {"waiting": 1}
    (nights.folder / "stop").unlink()
    nights.write_ini()
    nights.run("once")


def test_a_kill_file_ends_a_daemon(nights: Nights) -> None:
    daemon = nights.start("--kill-file", nights.folder / "other stop")
    nights.wait_for(lambda: "started" in nights.log())
    (nights.folder / "other stop").touch()
    assert daemon.wait(60) == 0
    assert "other stop exists" in nights.log()


def test_a_dry_run_changes_nothing(nights: Nights) -> None:
    nights.make(night_of(0), 1)
    before = contents(os.fsencode(nights.folder))
    done = nights.run("once", "--dry-run")
    assert f"{night_of(0)}/00000001" in done.stdout
    nights.run("run", "--dry-run")
    nights.run("backup", "--dry-run")
    assert contents(os.fsencode(nights.folder)) == before
    nights.round()
    assert json.loads(nights.run("once", "--dry-run", "--json").stdout) == []


def test_what_the_queue_shows_and_says(nights: Nights) -> None:
    """One request for each unit; kill and retry by the queue are followed."""
    from gsync.transfer.queue.requests import TransferState
    from gsync.transfer.queue.transfers import Transfers

    bad, good = nights.make(night_of(2), 1, listed=False), nights.make(night_of(2), 2)
    nights.round(now=datetime.now(UTC) - timedelta(days=2))
    transfers = Transfers(str(nights.home))
    try:
        found = {request.label: request for request in transfers.requests()}
        failed, done = (found[f"raw {os.fsdecode(unit)}"] for unit in (bad, good))
        assert (failed.kind, failed.owner, failed.state) == ("deliver", "raw", TransferState.FAILED)
        assert [each.state for each in transfers.operations(done.id)] == [TransferState.DONE, TransferState.NEW]
        nights.write_list(bad)
        assert Orders(transfers).retry(request=failed.id) > 0
        nights.round()
        assert nights.states() == {"delivered": 2}
        assert [each.state for each in transfers.operations(done.id)] == [TransferState.DONE, TransferState.DONE]
        lost = nights.make(night_of(2), 3)
        remove(nights.data / os.fsdecode(lost))
        nights.round()
        assert nights.units()[os.fsdecode(lost)]["state"] == "waiting"
        (request,) = [each for each in transfers.requests() if each.label == f"raw {os.fsdecode(lost)}"]
        assert Orders(transfers).kill(request=request.id) > 0
        nights.round()
        assert nights.units()[os.fsdecode(lost)]["state"] == "killed"
        nights.make(night_of(2), 3)
        nights.round()
        assert nights.units()[os.fsdecode(lost)]["state"] == "killed"
        Orders(transfers).retry(request=request.id)
        nights.round()
        assert nights.is_as_source(lost)
    finally:
        transfers.close()


# what DESI's daemon did

class Lossy(VaultStore):
    """A vault that loses what it was given: nothing is durable."""

    def durable(self, path: bytes) -> bool:
        return False


def test_desi_07_a_backup_that_failed_is_not_done(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = nights.make(night_of(2), 1)
    nights.vault.rename(nights.folder / "away")
    (summary,) = nights.round()
    assert (summary.delivered, summary.backed_up) == (1, 0)
    (found,) = nights.units().values()
    assert (found["backed_up"], found["colour"]) == (False, "red")
    assert found["reason"].startswith("backup: ")
    (nights.folder / "away").rename(nights.vault)
    with monkeypatch.context() as patch:
        patch.setattr("gsync.transfer.stores.vault.VaultStore", Lossy)
        assert nights.round()[0].backed_up == 0
    assert "missing or damaged in the vault" in nights.units()[os.fsdecode(unit)]["reason"]
    assert modes(nights.destination / os.fsdecode(unit)) == {("dir", 0o2750), ("file", 0o440)}
    assert nights.round()[0].backed_up == 1
    (found,) = nights.units().values()
    assert (found["backed_up"], found["colour"], found["reason"]) == (True, "green", "")


def test_desi_07_what_was_damaged_since_delivery_is_not_backed_up_as_good(nights: Nights) -> None:
    unit = nights.make(night_of(1), 1)
    nights.round(now=datetime.now(UTC) - timedelta(days=1))
    path = nights.destination / os.fsdecode(unit) / "sub/guide.txt"
    times = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"rotten rotten"[:times.st_size].ljust(times.st_size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    nights.run("backup", code=1)
    (found,) = nights.units().values()
    assert not found["backed_up"]
    assert "damaged after delivery: sub/guide.txt" in found["reason"]


def test_desi_08_a_source_that_cannot_be_reached_leaves_the_catch_up_due(nights: Nights) -> None:
    unit = nights.make(night_of(2), 1)
    nights.round(now=datetime.now(UTC) - timedelta(days=2))
    nights.write(unit, b"late.fits", b"late")
    nights.write_list(unit)
    away = nights.folder / "source away"
    nights.ready.rename(away)
    (summary,) = nights.round()
    assert "no such folder" in summary.down
    assert not nights.is_as_source(unit)
    away.rename(nights.ready)
    assert nights.round()[0].caught_up == 1
    assert nights.is_as_source(unit)


def test_desi_09_an_error_between_pull_and_move_strands_nothing(
        nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, other = nights.make(night_of(0), 1), nights.make(night_of(0), 2)

    def broken(folder: bytes) -> None:
        if folder.endswith(b"1"):
            raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(placement, "lock", broken)
        (summary,) = nights.round()
    assert (summary.delivered, nights.states()) == (1, {"waiting": 1, "delivered": 1})
    assert nights.is_as_source(other)
    nights.wait_for(lambda: nights.round()[0].delivered == 1)
    assert nights.is_as_source(unit)


def test_desi_11_the_last_night_of_a_year_is_of_that_year(nights: Nights) -> None:
    nights.write_ini(desi_status=nights.folder / "desi")
    unit = nights.make("20251231", 1)
    for moment in (datetime(2025, 12, 31, 23, tzinfo=UTC), datetime(2026, 1, 1, 13, 59, tzinfo=UTC)):
        nights.round(now=moment)
    nights.write(unit, b"late.fits", b"late")
    nights.write_list(unit)
    assert nights.round(now=datetime(2026, 1, 1, 14, tzinfo=UTC))[0].caught_up == 1
    assert nights.round(now=datetime(2026, 1, 1, 20, tzinfo=UTC))[0].backed_up == 1
    assert os.listdir(nights.folder / "desi") == ["desi_transfer_status_2025.json"]
    year = json.loads((nights.folder / "desi/desi_transfer_status_2025.json").read_text())
    rows = year["20251231"]["00000001"]
    assert [row[:2] for row in rows] == [[2, 1], [1, 1], [0, 1]]
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)
    assert (nights.page / "2025.html").exists()
    assert not (nights.page / "2026.html").exists()


def test_desi_11_who_reads_the_status_never_sees_half_of_it(nights: Nights) -> None:
    nights.write_ini(desi_status=nights.folder / "desi")
    over, seen, broken = threading.Event(), set(), []

    def read() -> None:
        while not over.is_set():
            for path in [nights.page / "status.json", *nights.folder.glob("desi/*.json")]:
                if path.exists():
                    try:
                        seen.add(len(json.dumps(json.loads(path.read_bytes()))))
                    except ValueError as exc:
                        broken.append(f"{path}: {exc}")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(12):
            nights.make(night_of(0), number, {b"x": b"x"})
            nights.round()
    finally:
        over.set()
        reader.join()
    assert broken == []
    assert len(seen) > 3


def test_desi_12_a_missed_day_is_not_lost(nights: Nights) -> None:
    """Down for days: every night that was not caught up and backed up is, with the first round after."""
    units = [nights.make(night_of(days), days) for days in (9, 8, 7)]
    nights.write_ini(catchup_days=3)
    nights.round(now=datetime.now(UTC) - timedelta(days=9))
    nights.write(units[1], b"late.fits", b"late")
    nights.write_list(units[1])
    (summary,) = nights.round()
    assert (summary.caught_up, summary.backed_up) == (1, 3)
    assert all(nights.is_as_source(unit) for unit in units)
    assert {unit["colour"] for unit in nights.units().values()} == {"green"}
    assert nights.round()[0].backed_up == 0


def test_desi_12_an_error_is_not_no_lock(nights: Nights) -> None:
    lock = nights.folder / "checksum-running"
    nights.write_ini(checksum_lock=lock)
    nights.make(night_of(0), 1)
    lock.touch()
    (summary,) = nights.round()
    assert (summary.delivered, summary.waiting) == (0, f"the source's checksum lock {lock} exists")
    assert nights.status()["sets"][0]["note"] == summary.waiting
    lock.unlink()
    nights.write_ini(checksum_lock=nights.folder / ("x" * 300))  # too long a name: an error, and not that of no file
    (summary,) = nights.round()
    assert summary.delivered == 0
    assert summary.down
    nights.write_ini(checksum_lock=lock)
    assert nights.round()[0].delivered == 1


def test_desi_12_a_command_that_hangs_is_given_up(nights: Nights) -> None:
    """rsync that never says anything: the set is down after the timeout, and goes on when it works."""
    program = nights.folder / "rsync"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    nights.write_ini(common={"timeout": "1s", "rsync-command": program}, method="rsync")
    unit = nights.make(night_of(0), 1)
    (summary,) = nights.round()
    assert "no data for 1 s" in summary.down
    nights.write_ini(method="rsync")
    assert nights.round()[0].delivered == 1
    assert nights.is_as_source(unit)


@pytest.mark.parametrize("method", ["stream", "rsync"])
def test_desi_12_the_kill_file_is_seen_in_a_transfer(
        nights: Nights, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = nights.folder / "rsync"
    program.write_text(f"#!/bin/sh\ntouch {nights.folder}/stop\nexec sleep 1000\n")
    program.chmod(0o755)
    unit = nights.make(night_of(0), 1)
    with monkeypatch.context() as patch:
        if method == "rsync":
            nights.write_ini(common={"rsync-command": program}, method="rsync")
        else:
            def endless(self: DirStore, path: bytes, into: object) -> None:
                (nights.folder / "stop").touch()
                while True:
                    into.write(bytes(1 << 16))  # type: ignore[attr-defined]

            patch.setattr(DirStore, "get", endless)
        with pytest.raises(Stopped, match="kill file"):
            nights.round()
    assert nights.states() == {"waiting": 1}
    (nights.folder / "stop").unlink()
    nights.write_ini(method=method)
    assert nights.round()[0].delivered == 1
    assert nights.is_as_source(unit)


def test_desi_12_permissions_are_set_not_toggled(nights: Nights) -> None:
    unit = nights.make(night_of(0), 1)
    nights.round()
    place = nights.destination / os.fsdecode(unit)
    for _ in range(2):
        placement.lock(os.fsencode(place))
        assert modes(place) == {("dir", 0o2750), ("file", 0o440)}
    for _ in range(2):
        placement.seal(os.fsencode(place))
        assert modes(place) == {("dir", 0o2550), ("file", 0o440)}


def test_desi_12_across_file_systems_a_unit_appears_whole(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/shm is another file system: copied, verified, and renamed there."""
    other = Path(tempfile.mkdtemp(prefix="gsync-deliver-", dir="/dev/shm"))
    try:
        assert other.stat().st_dev != nights.staging.stat().st_dev
        nights.write_ini(destination=other)
        nights.destination = other
        units = [nights.make(night_of(0), number, {b"sub/large": os.urandom(3 << 20)}) for number in range(2)]
        renamed: list[bool] = []
        rename = placement.rename_new

        def watched(old: bytes, new: bytes) -> None:
            rename(old, new)
            renamed.append(contents(new) == contents(os.fsencode(nights.data) + new[len(os.fsencode(other)):]))

        monkeypatch.setattr(placement, "rename_new", watched)
        assert nights.round()[0].delivered == 2
        assert renamed == [True, True]
        assert all(nights.is_as_source(unit) for unit in units)
        late = units[0]
        nights.write(late, b"late", b"late")
        nights.write_list(late)
        nights.run("catchup")
        assert nights.is_as_source(late)
        assert modes(other / os.fsdecode(late)) == {("dir", 0o2750), ("file", 0o440)}
        assert nights.leftovers() == []
    finally:
        remove(other)
        nights.destination = nights.folder / "destination"


def test_rsync_brings_a_unit_too(nights: Nights) -> None:
    nights.write_ini(method="rsync")
    unit = nights.make(night_of(0), 1, {name: name for name in HOSTILE} | {b"sub dir/" + n: n for n in HOSTILE})
    assert nights.round()[0].delivered == 1
    assert nights.is_as_source(unit)
