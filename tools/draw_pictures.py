"""Draws the pictures of the documents: `python tools/draw_pictures.py` writes docs/img/*.svg.

The pictures bring their own panel and colours for light and dark, and need nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "img"
_STYLE = """
text { font: 14px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: #1f2a33; }
.small { font-size: 12px; fill: #52616b; }
.title { font-weight: 600; }
.panel { fill: #fbfcfd; stroke: #d5dde3; }
.frame { fill: none; stroke: #8fa1ae; stroke-dasharray: 6 4; }
.box { fill: #e3f1f0; stroke: #2a7f79; stroke-width: 1.5; }
.disk { fill: #fdf1d8; stroke: #b07d18; stroke-width: 1.5; }
.bad { fill: #fbe4e1; stroke: #b5443a; stroke-width: 1.5; }
.idle { fill: #eceff2; stroke: #7b8a95; stroke-width: 1.5; }
.line { fill: none; stroke: #3f5260; stroke-width: 1.6; }
.dashed { stroke-dasharray: 5 4; }
.head { fill: #3f5260; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8eef2; }
  .small { fill: #a9b8c2; }
  .panel { fill: #1b2228; stroke: #36424b; }
  .frame { stroke: #6f818d; }
  .box { fill: #173b3a; stroke: #4fb3ab; }
  .disk { fill: #40320f; stroke: #d9a63c; }
  .bad { fill: #47201c; stroke: #e08279; }
  .idle { fill: #2a333a; stroke: #8a99a4; }
  .line { stroke: #b4c3cd; }
  .head { fill: #b4c3cd; }
}
"""


class Picture:
    """Boxes and arrows on a panel of this size."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            'orient="auto-start-reverse"><path class="head" d="M0 0 10 5 0 10z"/></marker></defs>',
            f'<rect class="panel" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>']

    def frame(self, x: int, y: int, width: int, height: int, title: str) -> None:
        self._parts.append(f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>')
        self.text(x + 12, y + 21, title, "small title")

    def box(self, x: int, y: int, width: int, height: int, *lines: str, kind: str = "box") -> None:
        """A box: the first line is its title, the others explain it."""
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
        top = y + height / 2 - (len(lines) - 1) * 8.5 + 5
        for n, line in enumerate(lines):
            self.text(x + width / 2, top + 17 * n, line, "title" if n == 0 else "small", "middle")

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self._parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def arrow(self, *points: tuple[int, int], label: str = "", at: tuple[int, int] | None = None, both: bool = False,
              dashed: bool = False) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        start = ' marker-start="url(#head)"' if both else ""
        kind = "line dashed" if dashed else "line"
        self._parts.append(f'<polyline class="{kind}" points="{path}" marker-end="url(#head)"{start}/>')
        if label:
            (x1, y1), (x2, y2) = points[0], points[1]
            x, y = at or ((x1 + x2) // 2, (y1 + y2) // 2 - 8)
            self.text(x, y, label, "small", "middle")

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>"]) + "\n"


def overview() -> Picture:
    picture = Picture(900, 300, "The parts of gsync")
    picture.frame(20, 20, 520, 260, "master host")
    picture.frame(650, 20, 230, 260, "slave host")
    picture.box(40, 120, 110, 60, "master", "the tree", kind="disk")
    picture.box(200, 60, 110, 60, "recorder")
    picture.box(400, 60, 120, 60, "changelogs", "durable", kind="disk")
    picture.box(400, 170, 120, 60, "worker")
    picture.box(670, 120, 80, 60, "agent")
    picture.box(775, 120, 90, 60, "slave", "the copy", kind="disk")
    picture.arrow((95, 118), (95, 90), (198, 90), label="fanotify, inotify", at=(146, 80))
    picture.arrow((312, 90), (398, 90), label="records")
    picture.arrow((460, 122), (460, 168), label="what changed", at=(418, 150))
    picture.arrow((95, 182), (95, 210), (398, 210), label="what is there now", at=(245, 202))
    picture.arrow((522, 200), (590, 200), (590, 150), (668, 150), label="ssh", at=(632, 140), both=True)
    picture.text(595, 222, "names, data,", "small", "middle")
    picture.text(595, 238, "commits", "small", "middle")
    picture.arrow((752, 150), (773, 150))
    picture.text(765, 215, ".gsync: index, unfinished", "small", "middle")
    picture.text(765, 231, "files, trash", "small", "middle")
    return picture


def change() -> Picture:
    picture = Picture(900, 210, "The path of one change")
    steps = [("write", "a user changes", "a file"), ("record", "changelog,", "durable"),
             ("batch", "look at what", "is there now"), ("apply", "new file beside,", "then renamed in"),
             ("commit", "syncfs,", "then stime moves")]
    for n, lines in enumerate(steps):
        x = 25 + n * 176
        picture.box(x, 40, 146, 80, *lines, kind="disk" if n in (0, 4) else "box")
        if n:
            picture.arrow((x - 28, 80), (x - 3, 80))
    picture.text(98, 148, "master", "small", "middle")
    picture.text(274, 148, "recorder", "small", "middle")
    picture.text(450, 148, "worker", "small", "middle")
    picture.text(626, 148, "agent, receivers", "small", "middle")
    picture.text(802, 148, "agent", "small", "middle")
    picture.arrow((802, 160), (802, 185), (450, 185), (450, 158), dashed=True)
    picture.text(626, 179, "broken before the commit: the batch comes again", "small", "middle")
    return picture


def states() -> Picture:
    picture = Picture(900, 270, "The states of a session")
    picture.box(40, 105, 130, 60, "Created", kind="idle")
    picture.box(310, 105, 290, 60, "Started", "Initializing, Active, Passive or Faulty")
    picture.box(380, 20, 150, 46, "Paused", kind="idle")
    picture.box(740, 105, 130, 60, "Stopped", kind="idle")
    picture.arrow((172, 135), (308, 135), label="start")
    picture.arrow((602, 120), (738, 120), label="stop")
    picture.arrow((738, 150), (602, 150), label="start", at=(670, 168))
    picture.arrow((425, 103), (425, 68), label="pause", at=(398, 90))
    picture.arrow((485, 68), (485, 103), label="resume", at=(516, 90))
    picture.arrow((532, 43), (805, 43), (805, 103), label="stop", at=(670, 36))
    picture.arrow((40, 210), (105, 210), (105, 167), label="create", at=(66, 202))
    picture.arrow((805, 167), (805, 230), (640, 230), label="delete", at=(722, 222))
    picture.text(450, 192, "Faulty: the worker retries by itself, with growing pauses", "small", "middle")
    picture.text(628, 235, "the copy stays", "small", "end")
    return picture


def two_nodes() -> Picture:
    picture = Picture(900, 320, "Two nodes")
    picture.box(30, 130, 130, 60, "shared disk", "the master", kind="disk")
    picture.frame(230, 20, 240, 120, "node a")
    picture.frame(230, 180, 240, 120, "node b")
    picture.box(260, 60, 180, 60, "worker: Active", "holds the lease, epoch 7")
    picture.box(260, 220, 180, 60, "worker: Passive", "watches the lease", kind="idle")
    picture.box(520, 130, 150, 60, "meta volume", "session and lease", kind="disk")
    picture.box(740, 60, 130, 60, "agent", "slave host")
    picture.box(740, 220, 130, 60, "the copy", kind="disk")
    picture.arrow((95, 128), (95, 90), (258, 90))
    picture.arrow((95, 192), (95, 250), (258, 250))
    picture.arrow((442, 110), (595, 110), (595, 128), label="renews", at=(540, 124))
    picture.arrow((442, 240), (595, 240), (595, 192), label="reads", at=(540, 230))
    picture.arrow((442, 75), (738, 75), label="ssh, epoch 7", at=(640, 67))
    picture.arrow((805, 122), (805, 218))
    picture.arrow((442, 268), (690, 268), (690, 105), (738, 105), dashed=True)
    picture.text(588, 287, "after a takeover: epoch 8; 7 is refused", "small", "middle")
    return picture


def glusterfs() -> Picture:
    picture = Picture(900, 330, "A GlusterFS volume as master")
    for n, (top, state) in enumerate(((20, "set 1"), (180, "set 2"))):
        picture.frame(20, top, 560, 130, f"replica {state}")
        for m, (node, kind) in enumerate((("node1", "Active"), ("node2", "Passive"))):
            y = top + 32 + m * 48
            picture.box(40, y, 170, 38, f"brick {2 * n + m + 1} on {node}", kind="disk")
            picture.box(360, y, 190, 38, f"worker: {kind}", kind="box" if m == 0 else "idle")
            picture.arrow((212, y + 19), (358, y + 19), label="changelogs" if m == 0 else "")
    picture.box(700, 60, 170, 60, "agent", "one set at a time")
    picture.box(700, 220, 170, 60, "slave", "directory or volume", kind="disk")
    picture.arrow((552, 71), (698, 80), label="ssh", at=(630, 64))
    picture.arrow((552, 231), (640, 231), (640, 105), (698, 105))
    picture.arrow((785, 122), (785, 218))
    return picture


def queue() -> Picture:
    picture = Picture(900, 300, "The queue")
    picture.box(30, 60, 150, 60, "requests", "submit, send, archive", kind="disk")
    picture.box(30, 180, 150, 60, "stores", "dir, ssh, vault, …", kind="disk")
    picture.box(260, 115, 150, 70, "queue workers", "fair shares", "between owners")
    picture.box(500, 20, 180, 44, "DONE", "verified by SHA-256")
    picture.box(500, 90, 180, 44, "RETRY", "transient: growing pauses", kind="idle")
    picture.box(500, 160, 180, 44, "waits", "store unreachable: no try", kind="idle")
    picture.box(500, 230, 180, 44, "FAILED", "permanent, or out of tries", kind="bad")
    picture.box(750, 20, 120, 44, "catalog", "if you want", kind="disk")
    picture.arrow((182, 90), (220, 90), (220, 140), (258, 140))
    picture.arrow((258, 165), (220, 165), (220, 210), (182, 210), both=True)
    for y in (42, 112, 182, 252):
        picture.arrow((412, 150), (455, 150), (455, y), (498, y))
    picture.arrow((682, 42), (748, 42))
    for y, text in ((117, "retried by itself"), (187, "resumed by itself"), (257, "gsync queue retry")):
        picture.text(692, y, text, "small")
    return picture


def archive() -> Picture:
    picture = Picture(900, 260, "The states of an archive")
    names = [("a directory", "with its users", "disk"), ("created", "frozen, manifest", "box"),
             ("put", "durable, read back", "box"), ("purged", "only in the vault", "disk"),
             ("got", "back, the same", "box")]
    for n, (name, more, kind) in enumerate(names):
        picture.box(25 + n * 176, 90, 130, 60, name, more, kind=kind)
    for n, verb in enumerate(("create", "put", "purge", "get")):
        x = 155 + n * 176
        picture.arrow((x + 3, 120), (x + 43, 120), label=verb, at=(x + 23, 80))
    picture.arrow((794, 88), (794, 40), (618, 40), (618, 88), label="purge", at=(706, 32))
    picture.arrow((794, 152), (794, 205), (90, 205), (90, 152), label="delete: the vault's copy goes", at=(450, 197))
    picture.text(450, 240, "A step that failed or was killed: the same command with --retry", "small", "middle")
    return picture


def delivery() -> Picture:
    picture = Picture(900, 290, "The path of a unit")
    picture.frame(20, 30, 200, 150, "source host")
    picture.box(40, 75, 160, 70, "ready folder", "link NIGHT/EXPOSURE", "= complete", kind="disk")
    picture.box(290, 75, 140, 70, "staging", "pulled, kept", "over breaks")
    picture.box(500, 75, 140, 70, "verified", "against the list", "of checksums")
    picture.box(730, 40, 145, 60, "destination", "one rename", kind="disk")
    picture.box(730, 150, 145, 60, "quarantine", "with the reason", kind="bad")
    picture.box(500, 215, 140, 50, "vault", "nightly backup", kind="disk")
    picture.arrow((202, 110), (288, 110), label="stream,", at=(256, 90))
    picture.text(256, 130, "rsync", "small", "middle")
    picture.arrow((432, 110), (498, 110))
    picture.arrow((642, 100), (685, 100), (685, 70), (728, 70))
    picture.arrow((642, 120), (685, 120), (685, 180), (728, 180))
    picture.arrow((875, 70), (888, 70), (888, 240), (642, 240), dashed=True)
    picture.arrow((120, 182), (120, 240), (498, 240), dashed=True, label="the next day: late files", at=(300, 232))
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "overview": overview, "change": change, "states": states, "two-nodes": two_nodes, "glusterfs": glusterfs,
    "queue": queue, "archive": archive, "delivery": delivery}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(str(draw()))
