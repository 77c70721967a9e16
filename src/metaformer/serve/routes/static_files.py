"""The web page: the files of the folder ``static``, and some of the reports'."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from metaformer.inference.report.page import read_template
from metaformer.serve.http.security import PAGE_POLICY

FOLDER = Path(__file__).parents[1] / "static"
KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}

SHARED = {
    "look.css": "",
    "report_maps.js": "export { paint, paintAt, readMap };\n",
    "report_zoom.js": "export { makeZoom };\n",
}
"""Files of the reports that the page uses too: name -> what a module needs at its end."""

router = APIRouter(include_in_schema=False)


@router.get("/")
@router.head("/")
def index() -> Response:
    """The page itself; it asks for the token where there is one."""
    return page_file("index.html")


@router.get("/page/{name}")
@router.head("/page/{name}")
@router.get("/{name}")
@router.head("/{name}")
def page_file(name: str) -> Response:
    """A file of the page. The name is compared with those that exist, it never makes a path."""
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    if name in SHARED:
        text = read_template(name) + SHARED[name]
        return Response(text, media_type=KINDS[Path(name).suffix], headers=headers)
    for path in FOLDER.iterdir() if FOLDER.is_dir() else ():
        if path.name == name and path.suffix in KINDS:
            return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=headers)
    raise HTTPException(404, "there is no such page.")
