"""deliver.ini: what is read, and what is said of what is wrong."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.transfer.delivery import dataset
from gsync.transfer.delivery.dataset import read
from lab import REPOSITORY

SET = "[raw]\nsource = /s\nstaging = /st\ndestination = /d\n"


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    return tmp_path / "deliver.ini"


def test_the_sample_has_every_option_and_is_read(ini: Path) -> None:
    text = (REPOSITORY / "conf/deliver.ini").read_text()
    assert text == dataset.sample()
    ini.write_text("".join(line.removeprefix("#") if not line.startswith("# ") else line
                           for line in text.splitlines(keepends=True)).replace("/usr/local/bin/alert", "/bin/true"))
    settings = read(str(ini), {"DATA": "/data"})
    assert settings.sets[0].staging == "/data/staging/raw"
    assert settings.alerts.mail_to == "operator@example.org"


def test_desi_files_need_few_changes(ini: Path) -> None:
    ini.write_text("[DESI_SPECTRO_DATA]\nsource = dts:/data/dts/exposures/raw\nstaging = ${DESI_ROOT}/staging/raw\n"
                   "destination = ${DESI_SPECTRO_DATA}\nchecksum_file = checksum-{exposure}.sha256sum\n"
                   "[common]\nchecksum_lock = /tmp/checksum-running\ncatchup = 14\nbackup = 30\n")
    (found,) = read(str(ini), {"DESI_ROOT": "/desi", "DESI_SPECTRO_DATA": "/desi/data"}).sets
    assert (found.staging, found.destination, found.checksum_lock) == ("/desi/staging/raw", "/desi/data",
                                                                       "/tmp/checksum-running")
    assert (found.catchup, found.backup, found.vault_path) == (14, None, "DESI_SPECTRO_DATA")


def test_common_holds_for_all_sets_and_a_set_for_itself(ini: Path) -> None:
    ini.write_text("[common]\non-error = deliver\nfirst-night = 20260101\n" + SET +
                   "[other]\nsource = /s\nstaging = /st2\ndestination = /d2\non-error = quarantine\n")
    first, second = read(str(ini), {}).sets
    assert (first.on_error, second.on_error) == ("deliver", "quarantine")
    assert first.first_night == second.first_night == date(2026, 1, 1)
    assert second.quarantine == "/st2/.gsync-quarantine"


def test_a_dollar_and_the_home(ini: Path) -> None:
    ini.write_text(SET.replace("/d", "/cost$$") + "[common]\nkill-file = ~/stop\n")
    settings = read(str(ini), {})
    assert settings.sets[0].destination == "/cost$"
    assert settings.common.kill_file == os.path.expanduser("~/stop")


@pytest.mark.parametrize(("text", "says"), [
    ("", "no data set: add a section"),
    ("[common]\n", "no data set: add a section"),
    ("x = 1\n", "line 1: there is no [SECTION] above it"),
    (SET + "nonsense\n", "line 5: not of the form"),
    (SET + "source = /x\n", "line 5: source is set twice"),
    (SET + SET, "line 5: there is a [raw] already"),
    (SET.replace("source = /s\n", ""), "[raw] source: is missing"),
    (SET + "unitt = x\n", "[raw] unitt: no such option; did you mean unit?"),
    (SET + "hpss = x\n", "[raw] hpss: no such option: see vault"),
    (SET + "interval = 1m\n", "[raw] interval: belongs in [common]"),
    (SET + "[common]\nsource = /x\n", "[common] source: belongs in each data set"),
    (SET + "[common]\nsleep = 1\n", "[common] sleep: no such option: see interval"),
    (SET + "[common]\ninterval = soon\n", "[common] interval: 'soon': not a duration"),
    (SET + "staging2 = ${NOWHERE}\n", "[raw] staging2: not in the environment: NOWHERE"),
    (SET + "vault = a$b\n", "[raw] vault: 'a$b': write ${NAME}, or $$ for a dollar"),
    (SET + "catchup = noon\n", "[raw] catchup: 'noon': expected an hour"),
    (SET + "catchup-days = 0\n", "[raw] catchup-days: '0'"),
    (SET + "first-night = 20261301\n", "[raw] first-night: '20261301': expected a night"),
    (SET + "unit = {night}/\n", "[raw] unit: '{night}/': empty path part"),
    (SET + "checksum-file = list-{run}\n", "[raw] checksum-file: 'list-{run}': {run} is no field"),
    (SET + "on-error = ignore\n", "[raw] on-error: 'ignore'"),
    (SET.replace("/st", "st"), "[raw] staging: 'st': must be an absolute path"),
    (SET.replace("/st", "/d/x"), "[raw] staging: /d/x is inside the destination"),
    (SET.replace("/d", "/st/x"), "[raw] destination: /st/x is inside the staging"),
    (SET + "quarantine = /d/bad\n", "[raw] quarantine: /d/bad is inside the destination"),
    (SET + SET.replace("raw", "two").replace("/d", "/e"), "[two] staging: /st is also that of [raw]"),
    (SET + "[alerts]\nmail-to = nobody\n", "[alerts] mail-to: 'nobody': 'nobody' is not a mail address"),
    (SET + "[alerts]\ncommand = /nowhere/x\n", "[alerts] command: '/nowhere/x': no such executable"),
    (SET + "[logging]\nlevel = loud\n", "[logging] level: 'LOUD'"),
    (SET.replace("[raw]", "[a b]"), "[a b]: a data set name may hold"),
])
def test_what_is_wrong_is_told_with_file_section_and_option(ini: Path, text: str, says: str) -> None:
    ini.write_text(text)
    with pytest.raises(UsageError) as caught:
        read(str(ini), {})
    assert str(caught.value).startswith(f"{ini}: ")
    assert says in str(caught.value)


def test_no_file(ini: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read(str(ini), {})
