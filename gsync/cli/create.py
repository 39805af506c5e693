"""`gsync create` and `gsync delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gsync.cli import completion
from gsync.cli.options import JsonOption, StateOption, assigned

if TYPE_CHECKING:
    from gsync.service.preflight import Finding
    from gsync.session.session import Session
    from gsync.state.home import Home


def create(
    master: Annotated[str, typer.Argument(
        metavar="MASTER", help="Directory or volume to replicate.", autocompletion=completion.volumes)],
    slave: Annotated[str, typer.Argument(
        metavar="SLAVE", help="Where the copy is kept. /path, [user@]host:/path, "
                               "ssh://[user@]host[:port]/path, or [user@]host::VOLUME for a GlusterFS volume.")],
    name: Annotated[str | None, typer.Option(
        "--name", metavar="NAME", help="Name of the session. Default: made from MASTER and SLAVE.")] = None,
    settings: Annotated[list[str] | None, typer.Option(
        "-o", "--set", metavar="OPTION=VALUE", autocompletion=completion.settings,
        help="Setting of the session, see `gsync config help`. Repeatable.")] = None,
    adopt: Annotated[bool, typer.Option(
        "--adopt", help="Take over an existing copy. gsync compares it and sends only what differs.")] = False,
    from_gsyncd: Annotated[bool, typer.Option(
        "--from-gsyncd", help="Continue GlusterFS's own geo-replication. MASTER and SLAVE must be its two volumes."
    )] = False,
    accept_host_key: Annotated[str | None, typer.Option(
        metavar="SHA256:…", help="Accept the slave's host key if it has this fingerprint.")] = None,
    push_agent: Annotated[bool, typer.Option(
        "--push-agent", help="Install the agent in the slave's account. A key restricted to gsync needs it."
    )] = False,
    yes: Annotated[bool, typer.Option(
        "--yes", help="Set options of a GlusterFS volume without confirmation.")] = False,
    force: Annotated[bool, typer.Option(
        "--force", help="Create even if the slave is unreachable or short of space.")] = False,
    json: JsonOption = False,
    state: StateOption = None,
) -> int:
    """Check both ends and create a session.

    All problems are reported at once, and then nothing is created. The slave is not changed. Replication begins with
    `gsync start`.
    """
    from gsync.cli.output import asked, path_shown, print_json
    from gsync.service.creation import CreateRequest, SessionCreation
    from gsync.state.home import Home

    texts = _settings(settings or []) | ({"adopt": "true"} if adopt or from_gsyncd else {})
    request = CreateRequest(master, slave, name, texts, from_gsyncd, accept_host_key, push_agent, force)
    made = SessionCreation(Home(state), lambda question: yes or asked(question)).create(request)
    refusing = made.refusing
    if json:
        print_json({"session": made.session.name, "created": not refusing,
                    "findings": [{"level": f.level.value, "text": f.text} for f in made.findings]})
    else:
        _say(made.findings)
        if not refusing:
            print(f"session {made.session.name} created: {path_shown(made.volume.path)} to "
                  f"{path_shown(made.session.slave)}\nnext: gsync start {made.session.name}")
    if made.agent:
        import sys

        print(f"info: slave {made.session.slave}: the agent is installed as {made.agent}", file=sys.stderr)
    return _refused(refusing, json=json) if refusing else 0


def _settings(texts: list[str]) -> dict[str, str]:
    """The texts of -o by option. UsageError for a wrong one, or one of the node."""
    from gsync.base.errors import UsageError
    from gsync.session.options import Options, Scope

    values = assigned(texts, "-o")
    for row, value in values.values():
        if row.about.scope is Scope.NODE:
            raise UsageError(f"-o {row.name}: applies to the whole node; use gsync config --site set {row.name} "
                             f"{value}")
        Options.of({row.field: value}, "-o")
    return {name: value for name, (_, value) in values.items()}


def _say(findings: list[Finding]) -> None:
    import sys

    for finding in findings:
        text = f"{finding.level.value}: {finding.text}".encode("utf-8", "backslashreplace").decode()
        print(text, file=sys.stderr)


def _refused(errors: list[Finding], *, json: bool) -> int:
    """The exit code of a refusal, whose findings have been printed."""
    from gsync.cli.output import print_error

    may_be_forced = all(error.forcible for error in errors)
    if not json:
        print_error("session not created, see the errors above"
                    + ("; --force creates it anyway" if may_be_forced else ""))
    return min(error.code for error in errors)


def delete(
    session: Annotated[str | None, typer.Argument(
        metavar="SESSION", help="Name of the session. Optional if there is only one.",
        autocompletion=completion.sessions)] = None,
    all_sessions: Annotated[bool, typer.Option("--all", help="Delete all sessions.")] = False,
    reset_sync_time: Annotated[bool, typer.Option(
        "--reset-sync-time", help="Make the slave forget its sync time. A session created again then compares "
        "everything.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: JsonOption = False,
    state: StateOption = None,
) -> None:
    """Delete a stopped session with its settings, key and log.

    Nothing is deleted at the slave. A session that is created later for the same master and slave resumes where this
    one stopped, failures and held deletes included.
    """
    from gsync.base.errors import UsageError
    from gsync.cli.output import asked, print_json
    from gsync.session.session import SessionHome
    from gsync.state.home import Home

    home = Home(state)
    sessions = SessionHome(home)
    if session is not None and all_sessions:
        raise UsageError(f"delete: give either {session} or --all")
    chosen = sessions.list() if all_sessions else [sessions.the(session)]
    names = ", ".join(each.name for each in chosen)
    for each in chosen:
        _check_idle(each, home)
    if chosen and not yes and not asked(f"Delete {names}?"):
        raise UsageError(f"delete {names}: not deleted; confirm, or use --yes")
    results = []
    for each in chosen:
        has_key = _remove(each, home, forget=reset_sync_time)
        results.append({"session": each.name, "deleted": True})
        if not json:
            print(f"{each.name}: deleted" + ("; you can now remove the line of its key from authorized_keys at the "
                                             "slave" if has_key else ""))
    if json:
        print_json(results)


def _parts(session: Session, home: Home) -> list[Session]:
    """The session as its workers on this node have it; if its volume is gone, the session itself."""
    from gsync.base.errors import UsageError

    try:
        return session.parts(home.get(session.volume))
    except UsageError:
        return [session]


def _check_idle(session: Session, home: Home) -> None:
    """LockedError if a process works for the session, or is about to."""
    import os

    from gsync.base.errors import LockedError, UsageError
    from gsync.base.process import Lock
    from gsync.session.control import Wanted, read_wanted
    from gsync.session.report import Reports, missing

    if not os.path.isdir(session.shared):
        raise UsageError(f"session {session.name}: {missing(session)}")
    pid = Lock(session.run_lock, "").holder()
    if pid is not None:
        raise LockedError(f"session {session.name}: `gsync run` is running it, pid {pid}; stop that first")
    wanted = read_wanted(session)
    if wanted in (Wanted.STARTED, Wanted.PAUSED):
        raise LockedError(f"session {session.name} is {wanted}; stop it first with gsync stop {session.name}")
    for part in _parts(session, home):
        pid = Lock(part.worker_lock, "").holder()
        if pid is not None:
            raise LockedError(f"session {session.name}: its worker, pid {pid}, is still stopping; try again in a "
                              "moment")
    node = Reports(home).seen_working(session)
    if node is not None:
        raise LockedError(f"session {session.name}: its worker on node {node} is still stopping; try again in a moment")


def _remove(session: Session, home: Home, *, forget: bool) -> bool:
    """Delete the session, holding its locks; whether it had a key of its own."""
    import os

    from gsync.base.process import Lock
    from gsync.service.forget import forget_stime
    from gsync.session.session import SessionHome

    os.makedirs(session.folder, 0o700, exist_ok=True)  # of a session of another node
    # Named, this process would pass for a worker that a monitor has to end.
    with Lock(session.run_lock, f"session {session.name}"), \
            Lock(session.worker_lock, f"session {session.name}", named=False):
        has_key = os.path.exists(session.key)
        if forget:
            forget_stime(session, home)
        SessionHome(home).remove(session, forget=forget)
    return has_key

