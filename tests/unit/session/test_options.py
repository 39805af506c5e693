"""The table of options, the files that they stand in, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsync.base import ini
from gsync.base.errors import UsageError
from gsync.session import config
from gsync.session.glusteroptions import NOT_HERE
from gsync.session.options import Kind, Options, Scope, find, table
from lab import REPOSITORY

OPTIONS_OF_GLUSTERFS = """
access-mount allow-network change-detector change-interval changelog-archive-format changelog-batch-size
changelog-log-level checkpoint cli-log-level connection-timeout gfid-conflict-resolution gluster-cli-options
gluster-command gluster-command-dir gluster-log-level gluster-params ignore-deletes isolated-secondarys log-file
log-level log-rsync-performance max-rsync-retries meta-volume-mnt pid-file remote-gsyncd replica-failover-interval
rsync-command rsync-opt-existing rsync-opt-ignore-missing-args rsync-options rsync-ssh-options
secondary-access-mount secondary-gluster-command-dir secondary-gluster-log-level secondary-gluster-params
secondary-log-level secondary-timeout special-sync-mode ssh-command ssh-options ssh-options-tar ssh-port state-file
stime-xattr-prefix sync-acls sync-jobs sync-method sync-xattrs tar-command use-meta-volume use-rsync-xattrs
working-dir"""


class TestTable:
    def test_every_option_has_a_help_and_a_default_that_passes_its_check(self) -> None:
        assert Options.of(dataclasses.asdict(Options()), "defaults") == Options()
        for row in table().values():
            assert row.about.help.endswith("."), row.name
            assert row.takes, row.name
            assert set(row.about.restarts) <= {"worker", "recorder", "monitor", "queue"}, row.name

    def test_a_default_is_the_same_after_it_was_written_and_read(self) -> None:
        texts = {row.field: row.text(row.default) for row in table().values() if row.text(row.default)}
        assert Options.of(texts, "written") == Options()

    def test_no_option_is_without_effect(self) -> None:
        """Each one is looked at somewhere; tests/integration/test_options.py and others see what it does."""
        code = "\n".join(path.read_text() for path in (REPOSITORY / "gsync").rglob("*.py")
                         if path.name != "options.py")
        assert [row.name for row in table().values() if not re.search(rf"\.{row.field}\b", code)] == []

    @pytest.mark.parametrize(
        ("text", "rate"),
        [("500K", 512000), ("10M", 10485760), ("1.5G", 1610612736), ("7", 7), ("2 MiB", 2097152), (9, 9)])
    def test_a_size_may_have_a_unit(self, text: object, rate: int) -> None:
        assert Options.of({"changelog_batch_size": text}, "here").changelog_batch_size == rate

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("30s", 30), ("5m", 300), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("90", 90), ("1.5h", 5400),
         (60, 60)])
    def test_a_duration_may_have_a_unit(self, text: object, seconds: int) -> None:
        assert Options.of({"delete_retention": text}, "here").delete_retention == seconds

    @pytest.mark.parametrize(
        ("name", "value", "complaint"),
        [
            ("sync_jobs", 99, "sync-jobs: 99: should be less than or equal to 16"),
            ("sync_jobs", "many", "sync-jobs: 'many'"),
            ("sync_metod", "rsync", "sync-metod: no such option; did you mean sync-method?"),
            ("sync_method", "cp", "sync-method: 'cp'"),
            ("exclude", ["ok", "!"], "exclude"),
            ("exclude", ["a\nb"], "exclude"),
            ("changelog_batch_size", "much", "changelog-batch-size: 'much': not a number of bytes"),
            ("bandwidth_limit", "fast", "bandwidth-limit: 'fast': 'fast' is not a rate such as 500K or 10M"),
            ("bandwidth_limit", "0; Moon 3", "'Moon' is neither a day such as Mon nor"),
            ("bandwidth_limit", -1, "bandwidth-limit: -1"),
            ("ssh_port", 70000, "ssh-port: 70000"),
            ("delete_retention", -1, "delete-retention: -1"),
            ("slave_timeout", "soon", "slave-timeout: 'soon': not a duration"),
            ("log_level", "LOUD", "log-level: 'LOUD'"),
            ("ionice", "fast", "ionice: 'fast': should be idle"),
            ("rsync_command", "/nowhere/rsync", "rsync-command: '/nowhere/rsync': no such executable program"),
            ("rsync_options", "--dry-run", "it would send nothing"),
            ("rsync_options", "--delete-after", "--delete-after: not allowed"),
            ("rsync_options", "--bwlimit=3", "see bandwidth-limit"),
            ("rsync_options", "a b", "'a' is not an option"),
            ("rsync_options", "--x='", "quot"),
            ("ssh_options", "-oControlMaster=no", "gsync sets controlmaster itself"),
            ("ssh_options", "-o", "its value is missing"),
            ("ssh_options", "-L 1:2:3", "put others into a configuration file of ssh"),
        ])
    def test_a_wrong_value_is_refused(self, name: str, value: object, complaint: str) -> None:
        with pytest.raises(UsageError) as caught:
            Options.of({name: value}, "the place")
        assert str(caught.value).startswith("the place: ")
        assert complaint in str(caught.value)

    def test_options_that_only_glusterfs_has_are_refused_with_the_reason(self) -> None:
        for name in NOT_HERE:
            assert name not in table()
            with pytest.raises(UsageError, match="gsync does not have this option of GlusterFS: "):
                find(name)
        with pytest.raises(UsageError, match="gsync checkpoint"):
            find("checkpoint")

    def test_names_may_be_written_as_glusterfs_has_them(self) -> None:
        assert find("sync_jobs") is find("sync-jobs") is find("SYNC-JOBS")
        assert find("secondary-timeout").name == "slave-timeout"
        assert find("max-rsync-retries").name == "max-sync-retries"

    def test_every_option_of_glusterfs_is_here_or_refused_with_a_reason(self) -> None:
        for name in OPTIONS_OF_GLUSTERFS.split():
            assert name in NOT_HERE or find(name), name


class TestFile:
    def test_changing_one_option_leaves_the_rest_of_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "gsync.conf"
        path.write_text("# of mine\n\n[gsync]\n# jobs: few\nsync_jobs = 3\nexclude =\n    *.o\n    !keep.o\n; end\n\n")
        path.chmod(0o640)
        config.set_value(str(path), "sync-jobs", "4")
        config.set_value(str(path), "exclude", "a b\nc")
        config.set_value(str(path), "delete-retention", "86400")
        assert path.read_text() == ("# of mine\n\n[gsync]\n# jobs: few\nsync-jobs = 4\nexclude =\n    a b\n    c\n"
                                    "; end\ndelete-retention = 1d\n\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert config.reset_value(str(path), "exclude").name == "exclude"
        config.reset_value(str(path), "nice")
        assert path.read_text() == ("# of mine\n\n[gsync]\n# jobs: few\nsync-jobs = 4\n; end\ndelete-retention = 1d\n"
                                    "\n")

    @settings(deadline=None, max_examples=60)
    @given(lines=st.lists(st.sampled_from([
        "sync-jobs = 3", "  nice = 2", "\tadopt = yes", "exclude =", "    *.o", "      nice = 7", "# comment",
        "  # inside", "", "; nice = 9", "ssh_config=x", "exclude = a", "   [x]", "[gsync]"])),
        change=st.sampled_from([("nice", "5"), ("nice", None), ("exclude", "a\nb"), ("exclude", None),
                                ("sync-jobs", "1"), ("adopt", None)]))
    def test_however_a_file_is_written_a_change_changes_one_option(
            self, lines: list[str], change: tuple[str, str | None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "gsync.conf")
            path.write_text("\n".join(["[gsync]", *lines]) + "\n")
            try:
                before = ini.read(str(path))
            except UsageError:
                return
            name, value = change
            ini.change(str(path), name, value)
            after = {k: v.strip("\n") for k, v in ini.read(str(path)).items()}
            wanted = {k: v.strip("\n") for k, v in before.items() if k != name}
            assert after == (wanted if value is None else {**wanted, name: value})

    def test_a_file_that_is_missing_is_made_with_its_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "etc" / "gsync.conf"
        assert config.read_layer(str(path)) == {}
        config.set_value(str(path), "compression", "yes")
        assert path.read_text() == "[gsync]\ncompression = true\n"
        config.reset_value(str(path), "compression")
        assert path.read_text() == "[gsync]\n"

    def test_a_wrong_value_is_not_written(self, tmp_path: Path) -> None:
        path = tmp_path / "gsync.conf"
        with pytest.raises(UsageError, match="sync-jobs: '0'"):
            config.set_value(str(path), "sync-jobs", "0")
        assert not path.exists()

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("sync-jobs = 3\n", r"line 1: there is no \[gsync\] above it"),
            ("[gsync]\nsync-jobs = 3\nsync_jobs = 4\n", "line 3: sync-jobs is set twice"),
            ("[gsync]\nmax-sync-retries = 3\nmax-rsync-retries = 4\n", "max-sync-retries: set twice, under two names"),
            ("[gsync]\nsync-jobs\n", "line 2: not of the form OPTION = VALUE"),
            ("[gsync]\n[vars]\n", r"section \[vars\]"),
            ("[gsync]\nsync-jobs = 99\n", "sync-jobs: '99'"),
            ("[gsync]\nsync-jop = 9\n", "sync-jop: no such option; did you mean sync-jobs?"),
            ("[gsync]\ngluster-params = x\n", "gluster-params: gsync does not have this option"),
        ])
    def test_a_wrong_file_is_named_with_the_option(self, tmp_path: Path, content: str, complaint: str) -> None:
        path = tmp_path / "gsync.conf"
        path.write_text(content)
        with pytest.raises(UsageError, match=complaint) as caught:
            config.load_options([str(path)])
        assert str(caught.value).startswith(f"{path}: ")

    @pytest.mark.parametrize("pattern", [
        " leading", "trailing\\ ", ";semicolon", "\\#hash", "%(x)s", "a = b", "[a]", "ü", "\udcff", "$HOME", "\ttab",
        "a:b", "!keep", "'q'"])
    def test_a_pattern_means_the_same_after_it_was_written(self, tmp_path: Path, pattern: str) -> None:
        import pathspec

        path = str(tmp_path / "gsync.conf")
        config.set_value(path, "exclude", f"first*\n{pattern}\nlast*")
        first, back, last = config.load_options([path]).exclude
        assert (first, last) == ("first*", "last*")
        for name in (pattern, pattern.removeprefix("\\"), "trailing ", "other", "keep"):
            assert [pathspec.GitIgnoreSpec.from_lines(["*", each]).match_file(name) for each in (back, pattern)] in (
                [True, True], [False, False])

    def test_two_that_change_a_file_at_once_lose_nothing(self, tmp_path: Path) -> None:
        path = str(tmp_path / "gsync.conf")
        script = ("import sys; from gsync.session import config\n"
                  "for n in range(40): config.set_value(sys.argv[1], sys.argv[2], str(n % 10 + 1))")
        writers = [subprocess.Popen([sys.executable, "-c", script, path, name],
                                    env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
                   for name in ("sync-jobs", "nice", "max-sync-retries")]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        assert ini.read(path) == {"sync-jobs": "10", "nice": "10", "max-sync-retries": "10"}


class TestLayers:
    def test_a_later_layer_wins_option_by_option(self, tmp_path: Path) -> None:
        system, node, session = (str(tmp_path / name) for name in ("system", "node", "session"))
        config.set_value(system, "sync-jobs", "3")
        config.set_value(system, "nice", "5")
        config.set_value(node, "sync-jobs", "4")
        config.set_value(session, "compression", "true")
        paths = [system, node, session]
        assert config.load_options(paths) == Options(sync_jobs=4, nice=5, compression=True)
        assert config.load_options(paths, {"sync_jobs": 5, "exclude": ["x"]}) == Options(
            sync_jobs=5, nice=5, compression=True, exclude=("x",))
        assert {field: setting.where for field, setting in config.read_layers(paths).items()} == {
            "sync_jobs": node, "nice": system, "compression": session}
        with pytest.raises(UsageError, match="command line: sync-jobs: 99"):
            config.load_options(paths, {"sync_jobs": 99})

    def test_an_option_of_the_node_is_refused_in_a_session(self, tmp_path: Path) -> None:
        (tmp_path / "session.json").write_text("{}")
        path = tmp_path / "gsync.conf"
        with pytest.raises(UsageError, match="rollover-time: applies to the whole node; use gsync config --site set"):
            config.set_value(str(path), "rollover-time", "5s")
        path.write_text("[gsync]\nrollover-time = 5s\n")
        with pytest.raises(UsageError, match="rollover-time: applies to the whole node"):
            config.load_options([str(path)])


class TestSample:
    def test_conf_gsync_conf_is_what_the_table_prints(self) -> None:
        assert (REPOSITORY / "conf" / "gsync.conf").read_text() == config.sample(), \
            "python -m gsync.session.config > conf/gsync.conf"

    def test_every_option_in_it_can_be_switched_on(self, tmp_path: Path) -> None:
        path = tmp_path / "gsync.conf"
        lines = [line[1:] if line.startswith("#") and not line.startswith("# ") else line
                 for line in config.sample().split("\n")]
        path.write_text("\n".join(line for line in lines if not line.endswith("=")))
        assert config.load_options([str(path)]) == Options()
        set_here = config.read_layer(str(path))
        assert {row.field for row in table().values() if row.text(row.default)} == set(set_here)
        assert {row.about.kind for row in table().values()} == set(Kind)
        assert {row.about.scope for row in table().values()} == set(Scope)
