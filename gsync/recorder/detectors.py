"""The available detectors, and the choice between them."""

from __future__ import annotations

from collections.abc import Mapping

from gsync.base.errors import Faulty, UsageError
from gsync.base.fsid import Inodes
from gsync.base.log import get_logger
from gsync.recorder.detector import Detector, DetectorFactory, Knows, Unavailable

_log = get_logger(__name__)


def fanotify(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
    import os

    from gsync.recorder.fanotify import Fanotify

    return Fanotify(root_fd, inodes, knows, ignore_pid=os.getpid())


def inotify(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
    from gsync.recorder.inotify import Inotify

    return Inotify(root_fd, inodes, knows)


def auto(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
    """The first detector that works."""
    return first_of({"fanotify": fanotify, "inotify": inotify}, root_fd, inodes, knows)


def first_of(factories: Mapping[str, DetectorFactory], root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
    """The first of these detectors, by name, that works."""
    why = []
    for name, factory in factories.items():
        try:
            detector = factory(root_fd, inodes, knows)
        except Unavailable as exc:
            why.append(f"{name}: {exc}")
            continue
        _log.info("detector", name=detector.name, **({"not": "; ".join(why)} if why else {}))
        return detector
    raise Faulty(f"changes cannot be detected here: {'; '.join(why)}")


def by_name(name: str) -> DetectorFactory:
    """The factory with this name: auto, fanotify or inotify."""
    try:
        return {"auto": auto, "fanotify": fanotify, "inotify": inotify}[name]
    except KeyError:
        raise UsageError(f"detector {name!r}: there are auto, fanotify and inotify") from None
