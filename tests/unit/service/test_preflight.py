"""What is found before a session is made, with slaves on this host; and what a refusal leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from gsync.base.clock import Clock
from gsync.base.errors import SlaveError, UsageError
from gsync.base.model import NS
from gsync.link.client import SlaveClient
from gsync.link.survey import NUMBERS, Survey
from gsync.service.creation import Created, CreateRequest, SessionCreation
from gsync.service.preflight import Level, Measured, Probe, preflight
from gsync.session import config
from gsync.session.session import SessionHome
from gsync.state.home import Home

HUGE = Measured(1 << 60, 1 << 60, whole=True)


class World:
    """A state directory, a master and an empty slave."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tree, self.copy = folder, folder / "tree", folder / "copy"
        self.tree.mkdir()
        self.copy.mkdir()
        self.home = Home(str(folder / "home"))

    def create(self, probe: Probe | None = None, *, force: bool = False, **settings: str) -> Created:
        looks = partial(preflight, probe=probe or Probe())
        texts = {name.replace("_", "-"): text for name, text in settings.items()}
        request = CreateRequest(str(self.tree), str(self.copy), settings=texts, force=force)
        return SessionCreation(self.home, lambda question: False, looks).create(request)

    def sessions(self) -> list[str]:
        return [session.name for session in SessionHome(self.home).list()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", str(tmp_path / "none"))
    return World(tmp_path)


def texts(created: Created, level: Level) -> list[str]:
    return [finding.text for finding in created.findings if finding.level is level]


def surveyed(change: Callable[[Survey], Survey]) -> Probe:
    """The slave's own answer, changed."""
    return Probe(survey=lambda client, volume, adopt: change(SlaveClient.survey(client, volume, adopt)))


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_left(world: World) -> None:
    (world.copy / "foreign").touch()
    world.home.add("v", str(world.tree))
    site = config.node_path(world.home.path)
    config.set_value(site, "meta-volume-mnt", str(world.folder / "meta"))
    config.set_value(site, "use-meta-volume", "true")
    said = texts(world.create(Probe(measure=lambda volume: HUGE)), Level.ERROR)
    for text in (f"nothing is mounted at {world.folder}/meta", "it is neither empty nor a gsync slave",
                 "not enough space", "not enough inodes"):
        assert sum(text in line for line in said) == 1, (text, said)
    assert not os.path.exists(world.folder / "meta")
    assert sorted(os.listdir(world.copy)) == ["foreign"]
    assert world.sessions() == []


def test_a_lack_of_space_refuses_with_its_code_and_can_be_forced(world: World) -> None:
    probe = Probe(measure=lambda volume: Measured(1, 1 << 60, whole=False))
    (refusing,) = world.create(probe).refusing
    assert "the master's tree has at least 1 entries with 1048576 TiB" in refusing.text
    assert (refusing.code, refusing.forcible) == (SlaveError.exit_code, True)
    assert world.sessions() == []
    created = world.create(probe, force=True)
    assert created.refusing == []
    assert texts(created, Level.WARNING) == [refusing.text]
    assert world.sessions() == [created.session.name]


@pytest.mark.parametrize(("seconds", "text"), [(60, "its clock is 60 s ahead"), (-7, "its clock is 7 s behind")])
def test_clocks_that_are_apart_are_a_warning(world: World, seconds: int, text: str) -> None:
    now = time.time_ns()
    stopped = Clock(now=lambda: now, monotonic=lambda: 0.0)  # asked at once, so nothing is unsure
    probe = Probe(clock=stopped, survey=lambda client, volume, adopt: SlaveClient.survey(
        client, volume, adopt)._replace(now=now + seconds * NS))
    created = world.create(probe)
    assert any(text in line for line in texts(created, Level.WARNING))


def test_clocks_that_agree_are_not_mentioned(world: World) -> None:
    assert not any("clock" in finding.text for finding in world.create().findings)


def test_an_agent_of_another_protocol_is_an_error(world: World) -> None:
    created = world.create(surveyed(lambda survey: survey._replace(protocol=1, version="0.0.1")))
    assert any("its agent is gsync 0.0.1 with protocol 1" in line for line in texts(created, Level.ERROR))


def test_a_missing_rsync_is_an_error_only_where_it_is_needed(world: World) -> None:
    probe = Probe(program=lambda name: None)
    refused = world.create(probe, sync_method="rsync")
    assert [(f.text.partition(",")[0], f.code) for f in refused.refusing] == [
        ("sync-method is rsync", UsageError.exit_code)]
    created = world.create(probe)
    assert any(line.startswith("rsync is not installed on this host") for line in texts(created, Level.INFO))


def test_what_a_file_system_cannot_store_is_a_warning_for_each_consequence(world: World) -> None:
    lacks = ["acls", "owner", "hard links", "symlinks", NUMBERS]
    created = world.create(surveyed(lambda survey: survey._replace(lacks=lacks, file_system="vfat", uid=7)))
    attributes, names, numbers = texts(created, Level.WARNING)
    assert "vfat, as uid 7, cannot store acls and owner; gsync leaves them out" in attributes
    assert "cannot store hard links and symlinks; such entries become failures" in names
    assert "vfat has no stable inode numbers; gsync identifies files by name there" in numbers
