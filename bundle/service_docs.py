"""The service's description for those who write programs: every address and field, all of it from this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from fastapi.responses import HTMLResponse

from bundle.service_model import NOTICE

__all__ = ["describing_page"]

# Nothing but what the page itself brings: no script, style or picture of another site.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True,
    lstrip_blocks=True, undefined=jinja2.StrictUndefined,
)  # fmt: skip


def describing_page(description: Mapping[str, Any], model: Mapping[str, Any]) -> HTMLResponse:
    """Draw the page.

    Args:
        description: OpenAPI.
        model: of `bundle.service_model.describe_model`.
    """
    routes = [
        {
            "path": path,
            "method": method.upper(),
            "purpose": operation["description"],
            "fields": _fields(operation, description),
        }
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    text = _TEMPLATES.get_template("service.html.j2").render(routes=routes, model=model, notice=NOTICE)
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})


def _fields(operation: Mapping[str, Any], description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Fields of an operation's form."""
    contents = operation.get("requestBody", {}).get("content", {})
    if not contents:
        return []
    (content,) = contents.values()
    schema = description["components"]["schemas"][content["schema"]["$ref"].rsplit("/", 1)[-1]]
    return [
        {
            "name": name,
            "needed": name in schema.get("required", []),
            "default": field.get("default"),
            "purpose": field.get("description", ""),
            "kinds": _choices(field),
        }
        for name, field in schema["properties"].items()
    ]


def _choices(field: Mapping[str, Any]) -> str:
    """What a field takes: its values, or their kind."""
    for one in (field, *field.get("anyOf", ())):
        if "enum" in one:
            return ", ".join(map(str, one["enum"]))
        if "contentMediaType" in one or one.get("format") == "binary":
            return "file"
        if one.get("type") in ("integer", "boolean"):
            return str(one["type"])
    return "text"
