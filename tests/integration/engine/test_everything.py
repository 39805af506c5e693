"""`gsync run` of a tree that holds everything: both trees are the same afterwards, and rsync finds nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import REPOSITORY
from lab.place import Place
from lab.sshd import HOST, Sshd
from lab.trees import compare, make_everything, rsync_diff, wait_until_equal

PRIVILEGED = os.geteuid() == 0
WAYS = ["local-auto", "ssh-auto", "ssh-tarssh", "ssh-rsync"]  # tests/integration/test_engines.py has all of them


@pytest.fixture(params=WAYS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    way, method = request.param.split("-")
    args = ("--sync-method", method)
    if way == "local":
        place = Place(tmp_path, args=args)
        yield place
    else:
        with Sshd(tmp_path / "sshd") as server:
            place = Place(tmp_path, slave_arg=f"{HOST}:{tmp_path}/slave",
                          args=("--ssh-config", server.client_config, *args))
            yield place
    assert place.pids("worker") + place.pids("agent") + place.pids("receiver") == []


def rsync_says(place: Place) -> list[str]:
    """What rsync would do over the same way as the run; paths beyond PATH_MAX are for `compare` alone."""
    config = place.args[1] if place.args[0] == "--ssh-config" else None
    return rsync_diff(place.master, place.slave_arg, ssh_config=config)  # type: ignore[arg-type]


def test_everything_a_tree_holds(place: Place) -> None:
    make_everything(place.master, 1, privileged=PRIVILEGED)
    place.once()
    assert compare(place.master, place.slave) == []
    assert rsync_says(place) == []
    assert place.sent(place.once()) == (0, 0)


@pytest.mark.parametrize("detector", [pytest.param("fanotify", marks=pytest.mark.root), "inotify"])
def test_everything_that_comes_later(tmp_path: Path, detector: str) -> None:
    """By the changelogs instead of the first crawl."""
    place = Place(tmp_path, args=("--detector", detector))
    with place.follow():
        make_everything(place.master, 2, privileged=PRIVILEGED)
        assert wait_until_equal(place.master, place.slave, 60) == []
    assert rsync_says(place) == []


def python_for_others(project: Path) -> tuple[str, str]:
    """A Python that every user may start, and the path on which it finds what this one does; the checkout is seen at
    `project` there."""
    executable = os.path.realpath(sys.executable)
    if any(not folder.stat().st_mode & 0o001 for folder in Path(executable).parents):
        executable = "/usr/bin/python3"
    libraries = Path(sysconfig.get_path("purelib"))
    if libraries.is_relative_to(REPOSITORY):
        libraries = project / libraries.relative_to(REPOSITORY)
    return executable, os.pathsep.join([str(project), str(libraries)])


@pytest.mark.root
def test_unprivileged() -> None:
    """Some of these very tests as a user without privileges.

    In a mount namespace, where a passwd file of our own gives that user a shell: sshd insists on one.
    """
    user = 64_123
    with tempfile.TemporaryDirectory() as name:  # pytest keeps its own folders to one user
        folder = Path(name)
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        os.chown(home, user, user)
        for kind, line in (("passwd", f"gsync-tester:x:{user}:{user}::{home}:/bin/sh\n"),
                           ("group", f"gsync-tester:x:{user}:\n")):
            (folder / kind).write_text(Path("/etc", kind).read_text() + line)
        project = folder / "project"  # the checkout may lie where only root gets to
        project.mkdir()
        script = (f"mount --bind {folder}/passwd /etc/passwd && mount --bind {folder}/group /etc/group && "
                  f"mount --bind '{REPOSITORY}' {project} && cd {project} && "
                  f'exec setpriv --reuid {user} --regid {user} --clear-groups -- "$@"')
        python, path = python_for_others(project)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={project}",
                   f"--basetemp={home}/tests", str(project / Path(__file__).relative_to(REPOSITORY)),
                   "-k", "ssh-auto or later"]
        env = {**os.environ, "HOME": str(home), "USER": "gsync-tester", "LOGNAME": "gsync-tester",
               "PYTHONDONTWRITEBYTECODE": "1",
               "PYTHONPATH": path}
        done = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *command],
                              env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
