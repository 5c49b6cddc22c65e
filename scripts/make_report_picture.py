"""Draw docs/report.webp: a report as it looks wide and on a phone, light and dark.

    featcache report clothing10.features -o clothing10.html
    python scripts/make_report_picture.py clothing10.html docs/report.webp

Needs Chromium (on the PATH, or named in FEATCACHE_CHROMIUM).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--allow-file-access-from-files", "--virtual-time-budget=3000"),
)
# A headless window is at least 500 pixels wide, a frame in it need not be. One point of the map is pointed at.
FRAME = """<body style="margin:0"><iframe src="{page}#{section}" style="border:0;width:{width}px;height:{height}px">
</iframe><script>onload=()=>{{const w=document.querySelector("iframe").contentWindow;
const s=w.document.querySelector("#cloud svg"),r=s.getBoundingClientRect(),u=s.querySelectorAll("g>use")[150];
if("{section}"==="map")s.dispatchEvent(new w.PointerEvent("pointermove",{{
clientX:r.left+u.getAttribute("x")*r.width/1000,clientY:r.top+u.getAttribute("y")*r.width/1000}}))}}</script>"""
WIDE = (("summary", 560), ("errors", 880), ("map", 860))
PHONE = (("summary", False), ("errors", True), ("map", False))


def main(page: Path, out: Path) -> None:
    wide = [shot(page, section, 1100, height) for section, height in WIDE]
    total = sum(image.height for image in wide) + 6 * (len(wide) - 1)
    height = (total - 12 * (len(PHONE) - 1)) // len(PHONE)
    phone = [shot(page, section, 390, height, dark) for section, dark in PHONE]
    sheet = Image.new("RGB", (1100 + 390 + 48, total + 24), (200, 204, 210))
    for x, gap, images in ((12, 6, wide), (1136, 12, phone)):
        y = 12
        for image in images:
            sheet.paste(image, (x, y))
            y += image.height + gap
    sheet = sheet.resize((sheet.width * 5 // 6, sheet.height * 5 // 6), Image.Resampling.LANCZOS)
    sheet.save(out, quality=72, method=6)


def shot(page: Path, section: str, width: int, height: int, dark: bool = False) -> Image.Image:
    names = [os.environ.get("FEATCACHE_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    program = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if program is None:
        sys.exit("no Chromium: install it, or name one in FEATCACHE_CHROMIUM")
    with tempfile.TemporaryDirectory() as folder:
        frame, image = Path(folder, "frame.html"), Path(folder, "shot.png")
        uri = page.resolve().as_uri()
        frame.write_text(FRAME.format(page=uri, section=section, width=width, height=height), encoding="utf-8")
        words = [program, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={max(width, 500)},{height}"]
        words += ["--blink-settings=preferredColorScheme=0"] if dark else []
        subprocess.run([*words, f"--screenshot={image}", frame.as_uri()], check=True, capture_output=True, timeout=120)
        return Image.open(image).convert("RGB").crop((0, 0, width, height))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
