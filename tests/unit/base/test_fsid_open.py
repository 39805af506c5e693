"""Opening by handle, when the kernel is short of memory or does not find at first what directories move around."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from gsync.base import fsid


class Failing:
    """open_by_handle_at(2) that fails `times` times with this errno before it works."""

    def __init__(self, err: int, times: int) -> None:
        self.err, self.times = err, times

    def __call__(self, root_fd: int, handle: bytes, flags: int) -> int:
        if self.times:
            self.times -= 1
            ctypes.set_errno(self.err)
            return -1
        return os.dup(root_fd)


@pytest.mark.parametrize(("err", "times", "opens"), [
    (errno.ENOMEM, 30, True), (errno.ESTALE, 1, True), (errno.ESTALE, 2, False), (errno.EPERM, 1, False)])
def test_what_may_pass_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, err: int, times: int,
                                      opens: bool) -> None:
    root = os.open(tmp_path, os.O_RDONLY)
    handles = fsid.Handles(root)
    monkeypatch.setattr(fsid, "_open_by_handle_at", Failing(err, times))
    if opens:
        os.close(handles.open(handles.root, os.O_RDONLY))
    else:
        with pytest.raises(OSError, match=os.strerror(err)):
            handles.open(handles.root, os.O_RDONLY)
    os.close(root)
