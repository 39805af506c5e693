"""What the site does beside rendering: notes to the tests are left out, and nothing may be fetched from elsewhere."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_NOTE = re.compile(r"^ *<!--.*?-->\n", re.DOTALL | re.MULTILINE)
_FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)")


def on_page_markdown(markdown: str, **_others: object) -> str:
    return _NOTE.sub("", markdown)


def on_post_build(config: MkDocsConfig, **_others: object) -> None:
    for page in Path(config.site_dir).rglob("*.html"):
        for address in _FETCHED.findall(page.read_text()):
            raise PluginError(f"{page}: fetched from elsewhere: {address}")
