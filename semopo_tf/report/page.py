"""The pieces of the page: tables and figures with captions, what is missing, and the page itself, one file without
scripts.
"""

import base64
import html
import re
from collections.abc import Sequence
from typing import NamedTuple

from semopo_tf.report.tables import Table

MISSING = "What is missing"
STYLE = """
:root{--ink:#1d2733;--soft:#5b6775;--line:#d9dfe6;--faint:#f4f6f8;--mark:#0072b2}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;color:var(--ink);
max-width:76rem;margin:0 auto;
padding:1.5rem 1.25rem 4rem}
p,h1,h3,h4,summary,pre,code,figcaption,dd{overflow-wrap:anywhere}
h1{font-size:1.9rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.4rem;margin:3rem 0 .5rem;padding-top:.75rem;border-top:2px solid var(--ink)}
h3{font-size:1.08rem;margin:2.2rem 0 .4rem}h4{font-size:.95rem;margin:1.2rem 0 .2rem}
p,ul{margin:.5rem 0;max-width:52rem}
a{color:var(--mark)}code,pre{font:.85em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--faint);padding:.1em .3em;border-radius:3px}
pre{background:var(--faint);padding:.7rem;overflow-x:auto;border-radius:4px}
.result{font-size:1.25rem;line-height:1.45;margin:.8rem 0 1rem}
nav{font-size:.92rem;margin:.8rem 0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem}
.scroll{overflow-x:auto;margin:.7rem 0}.scroll:focus-visible,.strip:focus-visible{outline:2px solid var(--mark)}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;line-height:1.35}
th,td{padding:.35rem .55rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
white-space:nowrap}
th{font-weight:600;vertical-align:bottom;white-space:normal;line-height:1.2;border-bottom:1.5px solid var(--ink)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
th:nth-child(2),td:nth-child(2){text-align:left}
td:nth-child(2){white-space:normal;min-width:6.5rem;max-width:19rem}
tr.paper td{color:var(--soft);background:var(--faint);border-bottom-color:#b9c3ce}
small{display:block;font-size:.78em;color:var(--soft)}small code{font-size:1em}
.note{border-left:3px solid var(--mark);background:var(--faint);padding:.5rem .9rem;font-size:.93rem}
.missing dt{font-weight:600;margin-top:.8rem}.missing dd{margin:.1rem 0 0;max-width:52rem;font-size:.93rem}
figure{margin:.8rem 0 1.2rem}figcaption{color:var(--soft);font-size:.88rem;max-width:56rem;margin-top:.4rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,23.5rem),1fr));gap:.6rem 1rem}
.panels img,.wide{width:100%;max-width:31rem;height:auto;display:block}
.blocks{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,34rem),1fr));gap:.4rem 2rem}
.frames{display:flex;gap:.35rem}
.frames div{font-size:.72rem;flex:0 1 5.2rem;min-width:0;line-height:1.25}
.frames img,.strip img{image-rendering:pixelated;display:block}.frames img{width:100%}.frames .gap{flex:0 1 1rem}
.strip{display:flex;max-width:62rem;overflow-x:auto}
.strip .names{display:flex;flex-direction:column;flex:none;width:7.5rem;padding-right:.6rem}
.strip .names span{flex:1;display:flex;align-items:center;justify-content:flex-end;text-align:right;font-size:.74rem;
line-height:1.1}
.strip .frame{flex:1 0 17rem;min-width:17rem}.strip img{width:100%;height:auto}
details{margin:.2rem 0;break-inside:avoid;font-size:.92rem}.settings{columns:2 26rem;column-gap:2rem}
summary{cursor:pointer}
@media(max-width:30rem){body{font-size:15px;padding:1rem .8rem 3rem}
h1{font-size:1.5rem}.result{font-size:1.1rem}.strip .names{width:5.2rem}th,td{padding:.3rem .5rem}
th:first-child,td:first-child{white-space:normal;min-width:6.5rem}}
@page{margin:14mm}
@media print{html{font-size:10pt}body{max-width:none;padding:0;font-size:1rem}
h2{break-before:page;border:0;margin-top:0}nav+h2{break-before:auto}
h3,h4{break-after:avoid}figure,.panels img,tr,.strip,.frames div{break-inside:avoid}
table{font-size:7.5pt}th,td{padding:.2rem .3rem}td:first-child{white-space:normal}
.scroll,.strip{overflow:visible}.panels{grid-template-columns:1fr 1fr}.strip .frame{flex:1;min-width:0}
nav{display:none}a{color:inherit}
th:first-child,td:first-child{position:static}}
"""


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
    """A drawing with the name of its file and a text alternative."""

    name: str
    shows: str
    svg: bytes


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
