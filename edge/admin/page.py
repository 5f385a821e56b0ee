"""The page at `/`: is it well, how much is there, where is more. Plain HTML without script."""

from __future__ import annotations

from html import escape

from edge.admin.api import KINDS, AdminSource

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>edge: {state}</title>
<style>
body {{ font: 1em/1.5 sans-serif; margin: 2em }}
td + td {{ padding-left: 2em; text-align: right }}
</style>
</head>
<body>
<h1>edge: {state}</h1>
<table>
{rows}
</table>
<p><a href="/metrics">metrics</a> · <a href="/healthz">healthz</a> · <a href="/readyz">readyz</a></p>
</body>
</html>
"""
_ROW = '<tr><td><a href="/api/{kind}">{kind}</a></td><td>{count}</td></tr>'


def render_page(source: AdminSource) -> str:
    """Write the page for the state of this moment."""
    ready, detail = source.readiness()
    reasons = detail.get("reasons")
    state = "ready" if ready else ", ".join(map(str, reasons)) if isinstance(reasons, list) and reasons else "not ready"
    numbers = source.numbers()
    rows = "\n".join(_ROW.format(kind=kind, count=f"{numbers.get(kind, 0):,}") for kind in KINDS)
    return _PAGE.format(state=escape(state), rows=rows)
