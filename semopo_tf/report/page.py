"""The pieces of the page: tables and figures with captions, what is missing, and the page itself, one file without
scripts.
"""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from semopo_tf.report.tables import Table, csv_bytes

MISSING = "What is missing"
STYLE = "\n" + Path(__file__).with_suffix(".css").read_text()


class Part(NamedTuple):
    """A table or figure, or why there is none."""

    name: str  # e.g. `Figure 6`
    title: str
    body: str = ""  # HTML
    files: dict[str, bytes] = {}  # noqa: RUF012  by path below the page's folder
    missing: str = ""  # why there is none, plain text
    command: str = ""  # that supplies it

    @property
    def anchor(self) -> str:
        return slug(self.name)

    @property
    def heading(self) -> str:
        return html.escape(f"{self.name}. {self.title}" if self.name[-1].isdigit() else self.title)


class Section(NamedTuple):
    """Parts under one heading; a section without a single part that is there does not appear."""

    title: str
    parts: Sequence[Part]
    before: str = ""  # HTML

    def html(self) -> str:
        parts = [f"<h3 id={part.anchor}>{part.heading}</h3>\n{part.body}" for part in self.parts if not part.missing]
        return "\n".join([f"<h2 id={slug(self.title)}>{html.escape(self.title)}</h2>", self.before, *parts])


class Panel(NamedTuple):
    """A drawing with the name of its files, a text alternative, and its numbers."""

    name: str
    shows: str
    svg: bytes
    numbers: Sequence[Sequence[object]] = ()  # the rows of a CSV file, its heading first


def figure_part(
    name: str, title: str, panels: Sequence[Panel], caption: str, missing: str = "", command: str = ""
) -> Part:
    """A figure whose panels stand side by side where there is room.

    Args:
      missing: why there is no figure where there is no panel, and `command`, what supplies it.
    """
    if not panels:
        return Part(name, title, missing=missing, command=command)
    pictures = "".join(
        f"<img alt='{html.escape(panel.shows, quote=True)}' src='{embedded(panel.svg, 'svg+xml')}'>" for panel in panels
    )
    files = {f"figures/{slug(panel.name)}.svg": panel.svg for panel in panels}
    files |= {f"figures/{slug(panel.name)}.csv": csv_bytes(panel.numbers) for panel in panels if panel.numbers}
    return Part(name, title, f"<figure><div class=panels>{pictures}</div>{caption_html(caption)}</figure>", files)


def table_part(name: str, title: str, table: Table, caption: str) -> Part:
    return Part(name, title, f"{table.html()}<figure>{caption_html(caption)}</figure>", table.files())


def paragraphs(*texts: str, kind: str = "") -> str:
    """A paragraph for each plain text that is not empty."""
    opening = f"<p class={kind}>" if kind else "<p>"
    return "".join(f"{opening}{_text(text)}</p>" for text in texts if text)


def caption_html(text: str) -> str:
    return f"<figcaption>{_text(text)}</figcaption>"


def embedded(data: bytes, kind: str) -> str:
    """A picture as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def slug(text: str) -> str:
    """For names of files and anchors."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "_"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
      lead: the result in one sentence, plain text.
    """
    there = [section for section in sections if any(not part.missing for part in section.parts)]
    missing = [part for section in sections for part in section.parts if part.missing]
    titles = [section.title for section in there] + [MISSING] * bool(missing)
    links = "".join(f"<a href='#{slug(each)}'>{html.escape(each)}</a>" for each in titles)
    parts = [f"<h1>{html.escape(title)}</h1><p class=result>{_text(lead)}</p>", *(section.html() for section in there)]
    parts.insert(2, f"<nav>{links}</nav>")
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join([*parts, missing_html(missing)])
    return f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def missing_html(missing: Sequence[Part]) -> str:
    """What the given runs cannot show, with the reason and the command that supplies it."""
    if not missing:
        return ""
    rows = []
    for part in missing:
        reason = _text(part.missing[0].upper() + part.missing[1:])
        command = f" <code>{html.escape(part.command)}</code>" if part.command else ""
        rows.append(f"<dt id={part.anchor}>{part.heading}</dt><dd>{reason}{command}</dd>")
    return f"<h2 id={slug(MISSING)}>{MISSING}</h2>\n<dl class=missing>{''.join(rows)}</dl>"


def _text(text: str) -> str:
    """Plain text as HTML, its lines joined."""
    return html.escape(" ".join(text.split()))
