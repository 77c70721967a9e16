"""Folders dropped on the service's page: what is used of them, and what is left out and said.

Needs what ``test_page`` needs.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers import boards, service
from tests.serve.test_page import (
    address,
    browser,
    cards,
    detector,
    make,
    opened,
    photos,
    pytestmark,
    score,
    server,
    wait_until,
)

__all__ = ["address", "browser", "detector", "photos", "pytestmark"]
"""Fixtures and marks of that file, which pytest finds here."""

UNREADABLE = object()
"""A file that the browser cannot read, or as a folder's name one it cannot list."""
Tree = dict[str, Any]

# What the browser makes of folders that a person drops, which no script can make.
DROP = """(zone, tree) => {
  const entryOf = (name, content, parent) => {
    const fullPath = `${parent}/${name}`, ending = name.split(".").at(-1);
    const kinds = { png: "image/png", txt: "text/plain", json: "application/json" };
    if (typeof content === "string") return {
      isFile: true, name, fullPath,
      file: (onFile, onError) => {
        if (content === "unreadable") { onError(new DOMException("no")); return; }
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        onFile(new File([bytes], name, { type: kinds[ending] ?? "" }));
      },
    };
    let left = Object.entries(content);
    return {
      isFile: false, name, fullPath,
      createReader: () => ({
        readEntries: (onEntries, onError) => {
          if (content[""] === "unreadable") { onError(new DOMException("no")); return; }
          const some = left;
          left = [];
          onEntries(some.map(([inner, value]) => entryOf(inner, value, fullPath)));
        },
      }),
    };
  };
  const items = Object.entries(tree).map(([name, content]) => ({
    kind: "file", webkitGetAsEntry: () => entryOf(name, content, ""),
  }));
  const event = new Event("drop", { cancelable: true });
  Object.defineProperty(event, "dataTransfer", { value: { items, files: [] } });
  zone.dispatchEvent(event);
}"""


def drop(page: Any, zone: str, tree: Tree) -> None:
    """Drop folders: name -> file or folder; ``UNREADABLE`` under an empty name: not listed."""

    def encoded(content: Any) -> Any:
        if isinstance(content, dict):
            return {name: encoded(inner) for name, inner in content.items()}
        if content is UNREADABLE:
            return "unreadable"
        return base64.b64encode(content).decode()

    page.locator(zone).evaluate(DROP, encoded(tree))


def unused(page: Any) -> dict[str, str]:
    """Path -> reason, as the table lists them."""
    rows = page.locator("#unread-rows tr").all()
    return dict(row.locator("td").all_text_contents() for row in rows)


@pytest.fixture(scope="module")
def good() -> bytes:
    return service.png(boards.good(50))


def test_what_is_passed_over_or_cannot_be_read_is_said(browser, address, detector, good):
    tree = {
        "lot": {
            "a.png": good,
            "gone.png": UNREADABLE,
            ".hidden.png": good,
            "@eaDir": {"a.png": good},
            "$RECYCLE.BIN": {"b.png": good},
            ".cache": {"c.png": good},
            "locked": {"": UNREADABLE},
            "out": {"run.json": b"{}", "scores.csv": b"x", "maps": {"a.png": good}},
            "out2": {"run.json": b"{}", "d.png": good},
            "ground_truth": {"a.png": good},
        }
    }
    with opened(browser, address) as page:
        drop(page, "#new-drop", tree)
        wait_until(lambda: len(cards(page)) == 2)
        wait_until(lambda: page.locator("#failed-note").is_visible())
        assert set(cards(page)) == {"a.png", "d.png"}
        found = unused(page)
        assert "not a photo" in found.pop("lot/out2/run.json")  # alone it tells nothing
        assert {path: reason.split(";")[0].split(".")[0] for path, reason in found.items()} == {
            "lot/gone.png": "the browser cannot read the file",
            "lot/locked": "the browser cannot list all of the folder",
            "lot/@eaDir": "thumbnails of a network drive",
            "lot/$RECYCLE.BIN": "a recycle bin",
            "lot/.cache": "a hidden folder",
            "lot/out": "results of this program",
        }
        said = page.inner_text("#new-state")
        assert "1 mask taken for the ground truth" in said
        assert "Not used: lot/@eaDir: thumbnails of a network drive; passed over." in said
        assert "gone.png" in page.inner_text("#failed-words")
        page.click("#clear")
        wait_until(lambda: not page.locator("#unread").is_visible())


def test_photos_beside_results_are_scored_and_the_results_are_not(browser, address, detector, good):
    written = {"run.json": b"{}", "report.html": b"x", "scores.csv": b"path,score\na,0.9\n"}
    with opened(browser, address) as page:
        drop(page, "#new-drop", {"lot": {"a.png": good, "maps": {"m.png": good}, **written}})
        wait_until(lambda: list(cards(page)) == ["a.png"])
        assert set(unused(page)) == {f"lot/{name}" for name in ("maps", *written)}


def test_a_data_set_dropped_among_good_photos_gives_its_good_photos(browser, address, good):
    bad, mask = service.png(boards.defective(60)), service.png(boards.good(3))
    tree = {
        "bottle": {
            "train": {"good": {"0.png": good}},
            "test": {"good": {"1.png": good}, "broken": {f"{i}.png": bad for i in range(2, 7)}},
            "ground_truth": {"broken": {"2_mask.png": mask}},
            "bad": {"8.png": bad},
            "@eaDir": {"0.png": good},
            "locked.png": UNREADABLE,
        },
        "notes.txt": b"not a photo",
    }
    with opened(browser, address) as page:
        page.click("#to-make")
        drop(page, "#good-drop", tree)
        wait_until(lambda: page.locator("#good-list li").count() == 2)
        titles = [item.get_attribute("title") for item in page.locator("#good-list li").all()]
        assert titles == ["bottle/test/good/1.png", "bottle/train/good/0.png"]
        said = page.inner_text("#make-error")
        assert "bottle/ground_truth/broken/2_mask.png: a mask that marks defects; left out." in said
        assert "and 3 more: in a folder of defective photos; left out." in said
        assert "bottle/test/broken/2.png" in said and "bottle/bad/8.png" in said
        assert "bottle/@eaDir: thumbnails of a network drive; passed over." in said
        assert "notes.txt: not a photo (text/plain)" in said
        assert "bottle/locked.png: the browser cannot read the file." in said


def report_outlines(page: Any, folder: Path) -> dict[str, list[list[int]]]:
    """File name -> polygons of the true defect, as the report of the page has them."""
    with page.expect_download() as download:
        page.click("#report")
    download.value.save_as(folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    content = json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])
    names = content["names"]
    return {names[int(rank)]: card.get("truth", []) for rank, card in content["cards"].items()}


def test_masks_mean_what_they_mean_to_the_command_line(browser, address, detector, tmp_path):
    """Above 127 of 255, or above 0 where no value gets that far; a thin line is not lost."""
    bad = service.png(cv2.resize(boards.defective(60), (1024, 1024)))
    grey = np.full((1024, 1024), 90, np.uint8)
    grey[256:512, 512:768] = 255
    classes = np.zeros_like(grey)
    classes[256:512, 512:768] = 2
    thin = np.zeros_like(grey)
    thin[257, 512:768] = 255
    faint = service.encoded(Image.fromarray(np.full((1024, 1024), 90, np.uint8)), "JPEG")
    tree = {
        "bad": {"grey.png": bad, "classes.png": bad, "thin.png": bad, "scan.png": bad},
        "masks": {
            "grey.png": service.png(grey),
            "classes.png": service.png(classes),
            "thin.png": service.png(thin),
            "scan.tif": service.encoded(Image.fromarray(grey), "TIFF"),
        },
        "loose": {"faint.png": bad, "faint_mask.jpg": faint},
    }
    with opened(browser, address) as page:
        drop(page, "#new-drop", tree)
        wait_until(lambda: len(cards(page)) == 5)
        (unread,) = unused(page).items()
        assert unread[0] == "masks/scan.tif" and "cannot show the mask" in unread[1]
        found = report_outlines(page, tmp_path)
    square = [[512, 256, 768, 256, 768, 512, 512, 512]]
    assert found == {
        "bad/grey.png": square,
        "bad/classes.png": square,
        "bad/thin.png": [[512, 256, 768, 256, 768, 260, 512, 260]],
        "bad/scan.png": [],
        "loose/faint.png": [],  # an empty mask: the photo is good
    }


def test_an_unknown_white_level_and_copies_are_said(browser, photos, tmp_path):
    """By the page, which has nothing but the service's answers."""
    deep, again = tmp_path / "deep.png", tmp_path / "again.bmp"
    cv2.imwrite(str(deep), boards.good(9).astype(np.uint16) * 16)
    Image.open(photos["good"][0]).save(again)
    other = tmp_path / "other.png"
    Image.fromarray(boards.good(7, "77000005")).save(other)
    with server(tmp_path / "store") as (address, _), opened(browser, address) as page:
        make(page, [*photos["good"], again], "board")
        assert "again.bmp (a copy of good-0.png)" in page.inner_text("#made-warnings")
        page.click("#made-next")
        score(page, [deep, other])
        assert page.inner_text("#doubts").startswith("deep.png: a 16-bit image, and the detector")
        page.reload()
        wait_until(lambda: page.locator("#doubts").is_visible())
        page.locator(".card", has_text="other.png").get_by_role("button", name="Good").click()
        page.click("#add-good")
        wait_until(lambda: "Added: the detector knows 6" in page.inner_text("#review-state"))
        assert "other.png looks unlike" in page.inner_text("#review-state")
