"""Is the report of a real set one small file that needs nothing else, made while one waits, and without errors?

The page of clothing10 with its images, as `featcache report` makes it: seconds, bytes, places outside of the page that
it names, and what headless Chromium says of it (where there is one: PATH, or FEATCACHE_CHROMIUM). Then one of 100,000
rows and 1,000 classes, without images.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim

from featcache import FeatureSet, ImageSource, report

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"),
)
#: Attributes that make a browser fetch something or lead away.
_FETCH = frozenset(("src", "href", "xlink:href", "srcset", "action", "formaction", "poster", "background", "ping"))
_STYLED = re.compile(r"url\((?!data:image/|#)|@import")


class _Outside(HTMLParser):
    """Counts the places outside of a page that its elements or styles name."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.inside = 0, ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        for name, value in attrs:
            named = name in _FETCH and not (value or "").startswith(("#", "data:image/"))
            self.count += named + (name == "style" and bool(_STYLED.search(value or "")))

    def handle_data(self, data):
        self.count += len(_STYLED.findall(data)) if self.inside == "style" else 0


def run(case: Any) -> dict[str, Any]:
    """Return figures and claims; `case.tiny` takes seconds, on generated codes."""
    data = case.load("clothing10")
    images: Any = None if case.tiny else str(case.data / "datasets" / "clothing10")
    if images is None:
        images = ImageSource.from_arrays(np.zeros((len(data), 8, 8, 3), "u1"), ids=sorted(data.row_ids.tolist()))
    pages = [_page("clothing10", data, case.work / "clothing10.html", images=images)]
    pages.append(
        _page("100,000 rows, 1,000 classes", _many(case.tiny), case.work / "many.html", heads=["ridge", "centroid"])
    )
    return {"rows": pages, "claims": _claims(pages)}


def _many(tiny: bool) -> FeatureSet:
    n, classes = (2_000, 50) if tiny else (100_000, 1_000)
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    X = (rng.normal(size=(classes, 64))[y] + 1.2 * rng.normal(size=(n, 64))).astype(np.float32)
    return FeatureSet(X, np.char.add("class ", y.astype(str)), name="many")


def _page(name: str, data: FeatureSet, path: Path, **settings: Any) -> dict[str, Any]:
    start = time.perf_counter()
    document = report(data, path, progress=False, **settings)
    seconds = time.perf_counter() - start
    content, outside = path.read_bytes(), _Outside()
    outside.feed(content.decode("utf-8"))
    return {
        "page": name,
        "images in the set": len(data),
        "seconds": round(seconds, 1),
        "bytes": len(content),
        "thumbnails": len(document.images),
        "places outside named": outside.count,
        "browser": _said(path),
    }


def _browser() -> str | None:
    names = [os.environ.get("FEATCACHE_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def _said(path: Path) -> dict[str, Any] | None:
    """What the browser logs of a page, and whether it drew all of it; None without a browser."""
    program = _browser()
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as profile:
        words = [program, *_FLAGS, f"--user-data-dir={profile}", path.as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    return {
        "console lines": sum("CONSOLE" in line for line in done.stderr.splitlines()),
        "sections drawn": done.stdout.count("<section"),
    }


def _claims(pages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = pages[0]
    largest = max(page["bytes"] for page in pages)
    outside = sum(page["places outside named"] for page in pages)
    seen = [page["browser"] for page in pages if page["browser"]]
    checks: list[tuple[str, Any, Callable[[Any], bool]]] = [
        ("the page of clothing10 is made in less than a minute (s)", first["seconds"], lambda s: s < 60),
        ("pages have less than 3 MB", largest, lambda n: n < 3_000_000),
        ("pages name no place outside of themselves", outside, lambda n: n == 0),
    ]
    if seen:
        lines = sum(page["console lines"] for page in seen)
        checks.append(("a browser has nothing to complain of (console lines)", lines, lambda n: n == 0))
        drawn = min(page["sections drawn"] for page in seen)
        checks.append(("and draws all eleven sections (one set of codes: no ranking)", drawn, lambda n: n == 11))
    return [claim(text, value, holds(value)) for text, value, holds in checks]
