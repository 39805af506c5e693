"""Checks both ends before a session is made, and reports all problems at once.

Promise: neither the slave nor the master is changed; the agent may be copied to the slave's cache directory, as for
every connection. Errors refuse the session (some of them can be forced), warnings do not.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from gsync import __version__
from gsync.base import rpc
from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import GsyncError, SlaveError, UsageError
from gsync.base.model import NS, shown
from gsync.base.times import rfc3339, shown_size
from gsync.link.client import SlaveClient
from gsync.link.link import Link, parse_slave
from gsync.link.survey import NUMBERS, Survey
from gsync.master.gluster import stime as gstime
from gsync.master.gluster.record import BrickHistory, BrickRecord
from gsync.recorder.status import RecorderPort
from gsync.service.spare import link_to
from gsync.session import places
from gsync.session.metavolume import MetaVolume
from gsync.session.options import Options
from gsync.session.session import Session
from gsync.state.gluster import GlusterInfo
from gsync.state.home import Home, Volume

CLOCKS_APART = 5.0     # seconds
MEASURE_FOR = 5.0      # seconds allowed for adding up a tree that no recorder knows
_PER_ENTRY = 1024      # approximate bytes that a name costs in the slave's index
_LITTLE = 64 << 20     # bytes that must be free in any case
_ATTRIBUTES = ("owner", "times", "xattrs", "acls", "privileged xattrs")


class Level(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One line for a person. code: the exit code of an error. forcible: whether --force ignores it."""

    level: Level
    text: str
    code: int = SlaveError.exit_code
    forcible: bool = False


@dataclass(frozen=True)
class Looked:
    """The findings, errors first. slave_volume: the id of a slave that is a GlusterFS volume; "" if it is none or did
    not answer."""

    findings: list[Finding]
    slave_volume: str = ""


@dataclass(frozen=True)
class Measured:
    """Entries and bytes of a tree, as far as they were counted. whole: everything was counted."""

    entries: int
    size: int
    whole: bool


@dataclass(frozen=True)
class Probe:
    """How both ends are inspected."""

    clock: Clock = SYSTEM_CLOCK
    measure: Callable[[Volume], Measured] = lambda volume: measured(volume)
    program: Callable[[str], str | None] = shutil.which
    survey: Callable[[SlaveClient, str, bool], Survey] = SlaveClient.survey


def preflight(session: Session, volume: Volume, home: Home, *, from_gsyncd: bool = False, probe: Probe = Probe()
              ) -> Looked:
    """Inspect both ends. The session need not be saved, nor the volume kept. from_gsyncd: the session is to continue
    GlusterFS's own geo-replication of the volume to this slave."""
    try:
        places.check_apart(volume, parse_slave(session.slave), home)
    except UsageError as exc:
        return Looked([_usage(str(exc))])  # nothing else matters then
    findings, slave_volume = _there(session, volume, probe)
    findings += _here(session, volume, home, probe)
    if from_gsyncd:
        findings += _taken_over(volume, slave_volume)
    return Looked(sorted(findings, key=lambda finding: list(Level).index(finding.level)), slave_volume)


def _usage(text: str) -> Finding:
    return Finding(Level.ERROR, text, UsageError.exit_code)


def _here(session: Session, volume: Volume, home: Home, probe: Probe) -> list[Finding]:
    findings = []
    if volume.gluster is None and not os.access(volume.path, os.R_OK | os.X_OK):
        findings.append(_usage(f"master {_shown(volume.path)}: uid {os.geteuid()} may not read it"))
    options = session.options
    if volume.gluster is not None:
        findings += _gluster(volume.gluster, options, probe)
    if options.use_meta_volume and not MetaVolume(options.meta_volume_mnt, os.path.join(home.path, "x")).mounted:
        findings.append(_usage(f"use-meta-volume is set, but nothing is mounted at {_shown(options.meta_volume_mnt)}; "
                               "mount the meta volume, or run gsync config --site set use-meta-volume false"))
    if parse_slave(session.slave).is_volume:
        if options.sync_method == "rsync":
            findings.append(_usage("sync-method rsync cannot write to a GlusterFS volume; use auto or tarssh"))
    elif options.sync_method != "tarssh" and probe.program(options.rsync_command) is None:
        findings.append(_no_rsync(options.sync_method, "on this host"))
    return findings


def _gluster(info: GlusterInfo, options: Options, probe: Probe) -> list[Finding]:
    findings = []
    if os.geteuid():
        findings.append(_usage("a GlusterFS volume can only be replicated by root, who may read its bricks"))
    for program in ("glusterfs", "unshare", "setpriv"):
        if probe.program(program) is None:
            findings.append(_usage(f"{program} is not installed on this host; a worker needs it to mount the volume"))
    if len({brick.node for brick in info.bricks}) > 1 and not options.use_meta_volume:
        findings.append(_usage(f"the bricks of {info.name} are on several nodes, which need a meta volume; mount one "
                               "on all of them, and run gsync config --site set use-meta-volume true"))
    return findings


def _taken_over(volume: Volume, slave_volume: str) -> list[Finding]:
    """The records of GlusterFS's own geo-replication about this slave, and their consequence for the first crawl."""
    if volume.gluster is None or not slave_volume:
        return [_usage("--from-gsyncd needs a GlusterFS volume as master and as slave; use --adopt to take over "
                       "anything else")]
    findings = []
    for at in volume.bricks_here():
        brick = volume.brick(at.number)
        found = gstime.standing(brick.root, volume.uuid, slave_volume)
        if found is None:
            findings.append(Finding(Level.WARNING, f"brick {at}: GlusterFS has no record of this slave"))
            continue
        history = BrickHistory(os.fsencode(brick.changelogs), BrickRecord(volume.gluster, at, brick.changelogs))
        resumes = "replication resumes from there" if history.reaches_back_to(found.stime) else \
            "changelogs of the time since are incomplete, so gsync crawls the volume"
        entries = f" (names up to {rfc3339(found.entry_stime)})" if found.entry_stime else ""
        findings.append(Finding(Level.INFO, f"brick {at}: the slave holds everything up to {rfc3339(found.stime)}"
                                f"{entries}; {resumes}"))
    if all(finding.level is Level.WARNING for finding in findings):
        findings.append(_usage(f"--from-gsyncd: the bricks of {volume.gluster.name} on this node have no "
                               "record of this slave; check that GlusterFS replicated to it, or use --adopt to compare "
                               "everything"))
    return findings


def _no_rsync(method: str, where: str) -> Finding:
    if method == "rsync":
        return _usage(f"sync-method is rsync, but rsync is not installed {where}; install it, or use auto")
    return Finding(Level.INFO, f"rsync is not installed {where}; large files that change in part are sent whole")


def _there(session: Session, volume: Volume, probe: Probe) -> tuple[list[Finding], str]:
    """What the slave reports, if it answers; and the id of its volume."""
    with tempfile.TemporaryDirectory(prefix="gsync-") as scratch:
        folder = session.folder if os.path.isdir(session.folder) else scratch  # missing until the session exists
        try:
            link = link_to(dataclasses.replace(session, folder=folder))
        except UsageError as exc:
            return [_usage(str(exc))], ""
        except GsyncError as exc:
            return [Finding(Level.ERROR, str(exc), forcible=True)], ""
        try:
            return _asked(link, session, volume, probe)
        except GsyncError as exc:
            return [Finding(Level.ERROR, str(exc))], ""
        finally:
            link.close()


def _asked(link: Link, session: Session, volume: Volume, probe: Probe) -> tuple[list[Finding], str]:
    slave = f"slave {link.slave}"
    client = SlaveClient(link, session.options.slave_timeout, master=volume.path)
    try:
        before, began = probe.clock.now(), probe.clock.monotonic()
        survey = probe.survey(client, volume.uuid, session.options.adopt)
        took = int((probe.clock.monotonic() - began) * NS)
    finally:
        client.close()
    findings = [Finding(Level.ERROR, f"{slave}: {problem}") for problem in survey.problems]
    findings += _versions(slave, survey)
    if survey.busy and survey.busy != session.name:
        findings.append(Finding(Level.ERROR, f"{slave}: session {survey.busy} is active there; stop that session, or "
                                "choose another directory", forcible=True))
    findings += _room(slave, survey, volume, probe)
    findings += _losses(slave, survey)
    findings += _clock(slave, survey.now - before - took // 2, took // 2)
    if session.options.sync_method != "tarssh" and link.slave.host is not None and not link.slave.is_volume \
            and not link.has_rsync() and probe.program(session.options.rsync_command):
        findings.append(_no_rsync(session.options.sync_method, "at the slave"))
    if survey.state == "missing":
        findings.append(Finding(Level.INFO, f"{slave}: the first start creates the directory"))
    elif survey.state == "ours":
        findings.append(Finding(Level.INFO, f"{slave}: it already holds a copy of this volume; replication resumes "
                                "from there"))
    elif survey.state == "foreign":
        findings.append(Finding(Level.INFO, f"{slave}: gsync compares its files with the master and takes them over; "
                                "it deletes what the master does not have"))
    return findings, survey.volume_id


def _versions(slave: str, survey: Survey) -> list[Finding]:
    """Only an agent that was installed for a restricted key can be of another version."""
    if survey.protocol != rpc.PROTOCOL:
        return [Finding(Level.ERROR, f"{slave}: its agent is gsync {survey.version} with protocol "
                        f"{survey.protocol}, this is {__version__} with {rpc.PROTOCOL}; use the same version at both "
                        "ends")]
    if survey.version != __version__:
        return [Finding(Level.WARNING, f"{slave}: its agent is gsync {survey.version}, this is {__version__}")]
    return []


def _room(slave: str, survey: Survey, volume: Volume, probe: Probe) -> list[Finding]:
    if survey.state == "ours":  # content that is already there need not be sent
        if survey.free < _LITTLE:
            return [Finding(Level.WARNING, f"{slave}: only {shown_size(survey.free)} free")]
        return []
    tree = probe.measure(volume)
    about = f"the master's tree has {'' if tree.whole else 'at least '}{tree.entries:,} entries with " \
            f"{shown_size(tree.size)}"
    need = tree.size + tree.entries * _PER_ENTRY + _LITTLE
    if survey.state == "foreign":
        need = _LITTLE  # only the sync shows how much is already there
    findings = []
    if need > survey.free:
        findings.append(Finding(Level.ERROR, f"{slave}: not enough space: {shown_size(survey.free)} free, {about}",
                                forcible=True))
    elif need > survey.free * 0.9:
        findings.append(Finding(Level.WARNING, f"{slave}: space is short: {shown_size(survey.free)} free, {about}"))
    if survey.inodes is not None and tree.entries > survey.inodes and survey.state != "foreign":
        findings.append(Finding(Level.ERROR, f"{slave}: not enough inodes: {survey.inodes:,} free, {about}",
                                forcible=True))
    return findings


def measured(volume: Volume, clock: Clock = SYSTEM_CLOCK) -> Measured:
    """The size of the tree, from its recorder's status if there is one; otherwise counted, for some seconds."""
    status = RecorderPort(volume.brick()).status()
    if status is not None and status.entries:
        return Measured(status.entries, status.bytes, True)
    until = clock.monotonic() + MEASURE_FOR
    entries = size = 0
    todo = [volume.path]
    while todo:
        if clock.monotonic() > until:
            return Measured(entries, size, False)
        try:
            with os.scandir(todo.pop()) as found:
                for entry in found:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # gone meanwhile, or not readable: the worker will report it
    return Measured(entries, size, True)


def _losses(slave: str, survey: Survey) -> list[Finding]:
    what = f"{slave}: {survey.file_system or 'its file system'}, as uid {survey.uid}, cannot store"
    attributes = [kind for kind in survey.lacks if kind in _ATTRIBUTES]
    names = [kind for kind in survey.lacks if kind not in (*_ATTRIBUTES, NUMBERS)]
    findings = []
    if attributes:
        findings.append(Finding(Level.WARNING, f"{what} {_and(attributes)}; gsync leaves them out, and `gsync status` "
                                "counts them"))
    if names:
        findings.append(Finding(Level.WARNING, f"{what} {_and(names)}; such entries become failures, which `gsync "
                                "failures` lists"))
    if NUMBERS in survey.lacks:
        findings.append(Finding(Level.WARNING, f"{slave}: {survey.file_system or 'its file system'} has no "
                                "stable inode numbers; gsync identifies files by name there, so it does not notice a "
                                "file that others replaced, and compares the last batch's files after an interruption"))
    return findings


def _clock(slave: str, ahead: int, unsure: int) -> list[Finding]:
    """ahead, unsure: ns."""
    apart = (abs(ahead) - unsure) / NS
    if apart <= CLOCKS_APART:
        return []
    return [Finding(Level.WARNING, f"{slave}: its clock is {apart:.0f} s {'ahead' if ahead > 0 else 'behind'}; dates "
                    "in its logs and in .gsync/trash will differ; synchronize both clocks, for example with NTP")]


def _and(words: list[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def _shown(path: str) -> str:
    return shown(os.fsencode(path))
