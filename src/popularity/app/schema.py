"""The interface over HTTP as an OpenAPI document, made of the types that are checked and returned."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from popularity.app.answers import Answer, Ranking, Variants
from popularity.app.bodies import Drafts, Question, WhatIf

CALLS: dict[str, tuple[str, type, type]] = {
    "predict": ("The prediction of a draft, and what explains it.", Question, Answer),
    "what-if": ("Variants of a draft: hours, tags, titles, crops or users.", WhatIf, Variants),
    "rank": ("The drafts of a CSV file, the most popular first.", Drafts, Ranking),
}
REFUSALS = {
    "400": "not JSON",
    "403": "a page of another host asks",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "422": "a field, the picture or the file cannot be used",
    "503": "too many requests wait",
}


def openapi() -> dict[str, Any]:
    """The document."""
    inputs: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (path, mode, TypeAdapter(kind))
        for path, (_, *kinds) in CALLS.items()
        for mode, kind in zip(("validation", "serialization"), kinds, strict=True)
    ]
    found, definitions = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    refused = {
        status: {"description": why, "content": {"application/json": {"schema": {"required": ["error"]}}}}
        for status, why in REFUSALS.items()
    }
    calls = {
        f"/api/{path}": {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": _json(found[path, "validation"])},
                "responses": {"200": {"description": "OK", "content": _json(found[path, "serialization"])}, **refused},
            }
        }
        for path, (summary, *_) in CALLS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "popularity: what if?", "version": "1"},
        "paths": calls,
        "components": {"schemas": definitions["$defs"]},
    }


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
