"""The slave without processes: the agent's methods are called directly, and the receiver's own tree code writes the
data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from gsync.base.errors import GsyncError
from gsync.base.model import ROOT_GFID
from gsync.base.namespace import IndexEntry
from gsync.link.client import SlaveClient
from gsync.link.protocol import CommitAnswer, MetaRow
from gsync.slave.agent import Agent
from gsync.slave.directory.target import DirectoryTarget
from gsync.slave.directory.tree import SlaveTree
from gsync.sync.engine import Flow
from gsync.sync.postbox import FileRequest, Result

if TYPE_CHECKING:
    from pathlib import Path

    from gsync.base.model import Gfid, Name
    from lab.model.world import World


class InlineClient(SlaveClient):
    """A SlaveClient whose agent is an object in this process. It is also the Connection's link: both end together."""

    def __init__(self, root: Path, world: World) -> None:
        self._world = world
        self._timeout, self._silence, self.ticket = 120, None, secrets.token_hex(16)
        self._master: tuple[str, list[tuple[int, int]]] = ("", [])
        self._target = DirectoryTarget(os.fsencode(root), step=lambda name: world.step("agent " + name))
        self.agent = Agent(self._target)

    def submit(self, method: str, **params: Any) -> Future[Any]:
        self._world.between(method)
        future: Future[Any] = Future()
        answer = self.agent.answer({"id": 1, "method": method, "params": params})
        if "error" in answer:
            future.set_exception(GsyncError(str(answer["error"])))
        else:
            future.set_result(answer["result"])
        return future

    def check(self) -> None:
        """Nothing can break in between."""

    def commit(self, stime: int | None, entry_stime: int | None, epoch: int, clear: bool,
               mark: str | None = None, walked: bool = False) -> CommitAnswer:
        answer = super().commit(stime, entry_stime, epoch, clear, mark, walked)
        self._world.check_commit(stime, walked)
        return answer

    @property
    def tree(self) -> SlaveTree:
        assert self._target.operations is not None
        return self._target.operations.tree

    def held(self) -> tuple[dict[Name, Gfid], dict[Gfid, bytes]]:
        """Names in the tree and contents by gfid, according to the index and confirmed by the disk."""
        names: dict[Name, Gfid] = {}
        contents: dict[Gfid, bytes] = {}
        todo = [ROOT_GFID]
        while todo:
            pargfid = todo.pop()
            for entry in self.tree.index.children(pargfid, limit=10**6):
                assert self.tree.is_at(entry), f"the index is wrong about {entry}"
                names[entry.name] = entry.gfid
                if entry.kind == 0o040000:
                    todo.append(entry.gfid)
                elif entry.kind == 0o100000:
                    fd = self.tree.open_file(entry.gfid, os.O_RDONLY)
                    with open(fd, "rb") as file:
                        contents[entry.gfid] = file.read()
        return names, contents

    def die(self) -> None:
        """SIGKILL: descriptors are closed, transactions roll back."""
        self.agent.close()

    def close(self) -> None:
        self.call("bye")
        self.die()


class InlineSyncer:
    """Moves each request at once."""

    def __init__(self, client: InlineClient, world: World) -> None:
        self._client, self._world = client, world
        self.flow = Flow()
        self._results: list[Result] = []

    def send(self, *requests: FileRequest) -> None:
        for request in requests:
            self._world.between("send")
            self._results.append(self._move(request))

    def results(self, wait: bool) -> Sequence[Result]:
        results, self._results = self._results, []
        return results

    def _move(self, request: FileRequest) -> Result:
        tree, source = self._client.tree, self._world.tree
        try:
            fd, st = source.open(request.gfid)
            try:
                xattrs = source.xattrs(request.gfid, fd, st)
                if request.place == "D" and st.st_nlink > 1:
                    raise OSError(errno.EMLINK, "it has other names too")
                data = os.pread(fd, 1 << 26, 0)
                changed = os.fstat(fd).st_size != len(data)
            finally:
                os.close(fd)
            self._world.sent.append(request.gfid)
            if request.place == "P":
                out = tree.open_file(request.gfid)
                self._world.step("receiver data in place")
                os.pwrite(out, data, 0)
                os.ftruncate(out, len(data))
            else:
                name = request.bname if request.place == "D" else request.gfid.hex().encode()
                dirfd = tree.open_limbo_dir(request.dirgfid) if request.place == "D" else tree.new_fd
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=dirfd)
                out = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=dirfd)
                self._world.step("receiver data new")
                os.pwrite(out, data, 0)
                tree.set_attrs(out, MetaRow(request.gfid, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns,
                                            st.st_atime_ns, xattrs))
                if request.place == "D":
                    with tree.index.transaction():
                        refused = tree.index.put_direct([IndexEntry(request.dirgfid, name, request.gfid, stat.S_IFREG,
                                                               tree.handles.of_fd(out), 0, len(data))])
                    if refused:
                        os.close(out)
                        os.unlink(name, dir_fd=dirfd)
                        os.close(dirfd)
                        raise FileExistsError(errno.EEXIST, "known by another name")
                    os.close(dirfd)
            os.close(out)
        except OSError as exc:
            return Result(request, exc.errno or 5, str(exc), 0, False)
        return Result(request, 0, "", len(data), changed)

    def close(self) -> None:
        pass
