"""The OpenAPI document where FastAPI does not know enough: errors, multipart bodies, limits."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from metaformer.serve.http.limits import Limits
from metaformer.serve.http.schemas import Error

REASONS = {
    400: "The request is not well-formed.",
    401: "The server has a token, and the request another or none.",
    403: "The request names another host, or comes from a page of another site.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    409: "The store or the list of marks is full, or a file of the detector is damaged.",
    413: "The body is too large.",
    415: "The body is of another kind.",
    422: "A value is not accepted, there are too many images, or none can be read.",
    429: "Too many requests at once; Retry-After says when to come again.",
    503: "Not finished in time, or no room to store the upload; try again later.",
}

JOB_ACCEPTED = {
    "description": "Taken on. Ask for the job until it is done or failed.",
    "headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}},
    "links": {
        "job": {"operationId": "get_job", "parameters": {"id": "$response.body#/job/id"}},
    },
}
DETECTORS_LISTED = {
    "links": {
        operation: {
            "operationId": operation,
            "parameters": {"id": "$response.body#/detectors/0/id"},
        }
        for operation in ("get_detector", "delete_detector", "download_detector", "predict")
    }
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented error answers of a route."""
    return {status: {"model": Error, "description": REASONS[status]} for status in statuses}


def text_answer(kind: str) -> dict[int | str, dict[str, Any]]:
    """The answer of a route that sends text of this media type."""
    return {200: {"content": {kind: {"schema": {"type": "string"}}}}}


def form_body(fields: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI of a multipart body: images, and the text fields of a JSON schema.

    Bodies are read by ``receive_form``, after the token and the number of requests are checked;
    FastAPI would read them before.
    """
    images = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "description": "Image files: PNG, JPEG, BMP, TIFF or WebP.",
    }
    schema = {
        **fields,
        "type": "object",
        "properties": {"images": images, **fields.get("properties", {})},
        "required": ["images", *fields.get("required", [])],
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI of a JSON body that ``receive_json`` reads; what it refers to is put inside."""
    schema = model.model_json_schema()
    inner = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolved(inner[value["$ref"].rpartition("/")[2]])
            return {key: resolved(each) for key, each in value.items()}
        return [resolved(each) for each in value] if isinstance(value, list) else value

    content = {"application/json": {"schema": resolved(schema)}}
    return {"requestBody": {"required": True, "content": content}}


def fit_document(document: dict[str, Any], limits: Limits, *, has_token: bool) -> None:
    """Make it that of one server: with its own limits, and a token only if it asks for one."""
    for path in document["paths"].values():
        for operation in path.values():
            if not has_token:
                operation.pop("security", None)
            content = operation.get("requestBody", {}).get("content", {})
            fields = content.get("multipart/form-data", {}).get("schema", {}).get("properties", {})
            if "images" in fields:
                fields["images"]["maxItems"] = limits.images
            if "resolution" in fields:
                fields["resolution"]["maximum"] = limits.resolution
    if not has_token:
        document["components"].pop("securitySchemes", None)
