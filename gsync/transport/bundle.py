"""The agent as one file that any Python from 3.9 on can run: gsync's modules of it in a zipapp."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_MODULES = ["__init__", "model", "errors", "fsid", "namespace", "rpc"]
_NOT_IN_AGENT = {"client"}
_MAIN = "import sys\nfrom gsync.slave.agent import main\nsys.exit(main())\n"


def zipapp() -> bytes:
    """The bytes of the zipapp; the same for the same modules."""
    files = [_PACKAGE / f"{name}.py" for name in _MODULES]
    files += [path for path in sorted((_PACKAGE / "slave").glob("*.py")) if path.stem not in _NOT_IN_AGENT]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.writestr(zipfile.ZipInfo(str(path.relative_to(_PACKAGE.parent))), path.read_bytes(),
                             zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("__main__.py"), _MAIN)
    return out.getvalue()
