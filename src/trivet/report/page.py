"""One HTML file of figures, tables and words; nothing is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivet import __version__
from trivet.report.svg import CSS, escape, number


@dataclass(frozen=True, slots=True)
class Section:
    """``body`` is HTML (charts, tables), ``text`` plain words above it; ``columns`` puts charts side by side."""

    title: str
    body: str | Sequence[str] = ""
    text: str = ""
    columns: bool = False


def page(title: str, sections: Iterable[Section | tuple[str, str]], *, subtitle: str = "", footer: str = "") -> str:
    """A whole HTML document; a section may be a pair (title, HTML)."""
    parts = []
    for raw in sections:
        section = raw if isinstance(raw, Section) else Section(*raw)
        body = section.body if isinstance(section.body, str) else "\n".join(section.body)
        head = f"<h2>{escape(section.title)}</h2>" if section.title else ""
        words = "".join(f"<p>{escape(p)}</p>" for p in section.text.split("\n\n") if p.strip())
        parts.append(f"<section>{head}{words}{f'<div class=grid>{body}</div>' if section.columns else body}</section>")
    sub = f'<p class="sub">{escape(subtitle)}</p>' if subtitle else ""
    foot = escape(footer or f"Trivet {__version__}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><h1>{escape(title)}</h1>{sub}"
        + "\n".join(parts)
        + f'<p class="foot">{foot}</p></main></body></html>\n'
    )


def kpis(items: Mapping[str, str]) -> str:
    """A row of headline figures: name -> text."""
    cards = "".join(f'<div class="kpi"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in items.items())
    return f'<div class="kpis">{cards}</div>'


def html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str] | None = None) -> str:
    """Rows as a table; numbers are right-aligned. ``columns``: which ones (name -> heading)."""
    keys = list(columns) if columns is not None else list(dict.fromkeys(k for row in rows for k in row))
    heads = dict(columns) if isinstance(columns, Mapping) else {k: k.replace("_", " ") for k in keys}
    right = {k for k in keys if any(_is_number(row.get(k)) for row in rows)}

    def cell(tag: str, key: str, content: str) -> str:
        return f'<{tag} class="r">{content}</{tag}>' if key in right else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", k, escape(heads[k])) for k in keys)
    body = "".join("<tr>" + "".join(cell("td", k, _text(row.get(k))) for k in keys) + "</tr>" for row in rows)
    return f'<div class="tablewrap"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 1e9:
        return f"{value:,}"
    return number(float(value)) if _is_number(value) else escape(value)
