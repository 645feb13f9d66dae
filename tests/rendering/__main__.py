"""`python -m tests.rendering [record] [publish]`: pictures of the dashboards, drawn by Grafana's own panels.

They show a recorded run: `record` trains again, for six minutes, and replaces the recording. The pictures go to
`build/dashboards`: every dashboard, dark and light, 1280 and 1920 pixels wide. What a reader would stumble over is
printed, and the exit code is 1 then. `publish` copies those that the documents show to `docs/pictures`.

Needs Prometheus, Node.js 20 or later, Chromium, and `npm ci` in `tests/rendering/page`; `make dashboards` runs that.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.rendering.panel_data import DASHBOARDS, ROOT, dashboard_data
from tests.rendering.record import GPU_CHOICE, record
from tests.rendering.recording import FILE, Recording

PAGE = Path(__file__).with_name("page")
OUT = ROOT / "build" / "dashboards"
PICTURES = ROOT / "docs" / "pictures"
PUBLISHED = {"convoy-run": "dark", "convoy-goodput": "light"}
"""Dashboards that documents show."""
MOST_BYTES = 300_000
"""Of a published picture."""


def data(recording: Recording) -> list[dict[str, Any]]:
    """What the page needs of all dashboards."""
    one = {"job": recording.job, "run": recording.main, "rank": ".+"}
    trained = {labels["job"] for labels, _ in recording.series if labels.get("job") and labels.get("run")}
    every = {"job": "|".join(sorted(trained - {GPU_CHOICE["job"]})), "run": ".+", "rank": ".+"}
    chosen = {"convoy-run": one, "convoy-reliability": one, "convoy-gpus": GPU_CHOICE}
    with tempfile.TemporaryDirectory() as name:
        server = recording.serve(Path(name))
        try:
            return [
                dashboard_data(path, server, chosen.get(path.stem, every), recording.span)
                for path in sorted(DASHBOARDS.glob("*.json"))
            ]
        finally:
            server.close()


def render(recording: Recording) -> list[str]:
    """Draw all dashboards; what is wrong with them."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    values = OUT / "dashboards.json"
    values.write_text(json.dumps(data(recording)))
    bundle = OUT / "page.js"
    subprocess.run(["node", str(PAGE / "bundle.mjs"), str(bundle)], check=True)
    subprocess.run(["node", str(PAGE / "capture.mjs"), str(bundle), str(values), str(OUT)], check=True)
    found = json.loads((OUT / "complaints.json").read_text())
    return [f"{each['name']}: {complaint}" for each in found for complaint in each["complaints"]]


def publish() -> None:
    """Copy the pictures of the documents."""
    for uid, mode in PUBLISHED.items():
        picture = OUT / f"{uid}-1920-{mode}.webp"
        assert picture.stat().st_size <= MOST_BYTES, f"{picture} has {picture.stat().st_size} bytes"
        shutil.copy(picture, PICTURES / f"{uid}.webp")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rendering", description=__doc__)
    parser.add_argument("parts", nargs="*", help="record, publish, or both")
    parts = parser.parse_args().parts
    if unknown := set(parts) - {"record", "publish"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if "record" in parts:
        record().save()
        print(f"recorded {FILE.relative_to(ROOT)}: {FILE.stat().st_size} bytes")
    complaints = render(Recording.load())
    print("\n".join(complaints) or "nothing to complain about", f"pictures: {OUT.relative_to(ROOT)}", sep="\n")
    if "publish" in parts:
        publish()
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
