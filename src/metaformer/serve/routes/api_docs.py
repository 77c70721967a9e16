"""``/docs``: the addresses of the service to read and try, offline.

Swagger UI comes with the package fastapi-offline, of which the files alone are used.
"""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from metaformer.serve.http.security import DOCS_POLICY
from metaformer.serve.routes.static_files import page_file

FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}

router = APIRouter(include_in_schema=False)


@router.get("/docs")
@router.head("/docs")
def docs() -> Response:
    """The page; it reads ``/openapi.json``."""
    page = page_file("docs.html")
    page.headers["Content-Security-Policy"] = DOCS_POLICY
    return page


@router.get("/docs/{name}")
@router.head("/docs/{name}")
def docs_file(name: str) -> Response:
    """A file of Swagger UI."""
    if name not in FILES:
        raise HTTPException(404, "there is no such page.")
    try:
        content = resources.files("fastapi_offline").joinpath("static", name).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise HTTPException(
            404, "the package fastapi-offline is missing: pip install 'metaformer-ad[serve]'."
        ) from None
    return Response(content, media_type=FILES[name], headers={"Cache-Control": "max-age=3600"})
