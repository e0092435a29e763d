"""The page at `/docs`: the OpenAPI document for people."""

import html
import json
from typing import Any

Json = dict[str, Any]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}
code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto}b{display:inline-block;min-width:4.5rem}
details{border-top:1px solid #8884;padding:.5rem 0}summary{cursor:pointer}
"""


def docs_page(document: Json) -> str:
    """Return a page of HTML that shows the document: no scripts, nothing loaded from elsewhere."""
    blocks = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            detail = html.escape(json.dumps({key: operation[key] for key in operation if key != "summary"}, indent=2))
            blocks.append(
                f"<details><summary><b>{method.upper()}</b> <code>{html.escape(path)}</code> "
                f"{html.escape(operation['summary'])}</summary><pre>{detail}</pre></details>"
            )
    schemas = html.escape(json.dumps(document["components"]["schemas"], indent=2))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Saucier: HTTP interface</title>'
        f"<style>{_STYLE}</style><h1>Saucier {html.escape(document['info']['version'])}</h1>"
        f'<p>{html.escape(document["info"]["description"])} The same as a file: <a href="openapi.json">'
        f"openapi.json</a>.</p>{''.join(blocks)}"
        f"<details><summary><b>Schemas</b></summary><pre>{schemas}</pre></details></html>"
    )
