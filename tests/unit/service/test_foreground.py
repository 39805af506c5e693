"""The processes of one `gsync run`, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gsync.service.foreground import exit_code, run_recorder, worker_specs
from gsync.service.kept import Ending
from gsync.session.session import SessionHome
from gsync.session.status import WorkerStatus
from gsync.state.home import Home

WELL = WorkerStatus()


@pytest.mark.parametrize(("ended", "statuses", "code"), [
    (0, [WELL], 0), (1, [WELL], 1), (0, [WELL, WorkerStatus(failures=1)], 1), (0, [WorkerStatus(held=1)], 1),
    (4, [WorkerStatus(failures=1)], 4)])
def test_a_run_that_is_done_tells_of_failures_and_held_deletes(ended: int, statuses: list[WorkerStatus], code: int
                                                               ) -> None:
    assert exit_code(Ending(ended, ""), statuses) == code


def test_a_directory_has_one_worker_and_one_recorder_with_the_settings_of_the_run(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSYNC_SYSTEM_CONF", str(tmp_path / "none"))
    (tmp_path / "tree").mkdir()
    home = Home(str(tmp_path / "home"))
    volume = home.add("v", str(tmp_path / "tree"))
    session = SessionHome(home).find_or_new("v", "/copy", "s")
    (following,) = worker_specs(session, volume, home, {"sync_jobs": 4}, None)
    (once,) = worker_specs(session, volume, home, {}, 17)
    assert json.loads(following.argv[following.argv.index("--settings") + 1]) == {"sync_jobs": 4}
    assert "--once-until" not in following.argv
    assert once.argv[once.argv.index("--once-until") + 1] == "17"
    assert following.status.path == session.worker_status
    recorder = run_recorder(session, volume, home)
    assert recorder is not None and recorder.lock == volume.brick().lock
