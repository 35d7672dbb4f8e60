"""The pictures of these pages, made by the commands that they show.

    python docs/pictures.py [--run runs/mt]

Needs the run, its data (the miniature world), playwright and Chromium.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
sys.path[0] = str(FOLDER.parents[1])

from PIL import Image
from playwright.sync_api import sync_playwright

from shards.common.cli import command, flag

PORT = 7869
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
IMAGE, EXPRESSION, WORD = "32385", "the large shape", "shape"  # of the miniature world


@dataclass
class Config:
    """Flags of this script."""

    run: str = flag("runs/mt", "a run of many tasks on the miniature world")
    data: str = flag("data/world", "the world")
    chromium: str = flag("/usr/bin/chromium", "the browser")


def call(module: str, *arguments) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def keep(path, name: str) -> None:
    image = Image.open(path).convert("RGB")
    image.thumbnail((1200, 1200))
    image.save(FOLDER / name, quality=82, method=6)
    print(f"{name}: {(FOLDER / name).stat().st_size / 1000:.0f} kB")


@contextlib.contextmanager
def served(run: str):
    """The live page while the block runs."""
    process = subprocess.Popen([sys.executable, "-m", "finetune.demo", "--run", run, "--port", str(PORT)])
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}").close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        process.terminate()
        process.wait()


def run(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        files, shot = Path(folder), f"{folder}/shot.png"
        call("shards.inspect", f"{config.data}/regions/coco", "--image", IMAGE, "--picture", shot)
        keep(shot, "regions.webp")
        call("finetune.report", config.run, "--out", files / "report.html")
        call(
            "finetune.examples",
            "--run",
            config.run,
            "--data",
            config.data,
            "--task",
            "vqa,refcoco",
            "--attention",
            "false",
            "--examples",
            500,
            "--out",
            files / "examples.html",
        )
        call(
            "finetune.attention",
            "--run",
            config.run,
            "--task",
            "refcoco",
            "--image",
            IMAGE,
            "--text",
            EXPRESSION,
            "--out",
            files / "attention.html",
        )
        browser = playwright.chromium.launch(executable_path=config.chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 780})
        page.goto(f"file://{files / 'report.html'}")
        page.locator("#stop-and-go-0").screenshot(path=shot)
        keep(shot, "report.webp")
        page.goto(f"file://{files / 'examples.html'}")
        page.screenshot(path=shot)
        keep(shot, "examples.webp")
        page.goto(f"file://{files / 'attention.html'}")
        page.get_by_role("button", name=WORD, exact=True).hover()
        page.screenshot(path=shot)
        keep(shot, "attention.webp")
        page.mouse.move(0, 0)
        page.check("#labels")
        page.fill("#shown", "6")
        page.locator("#image").screenshot(path=shot)
        keep(shot, "words.webp")
        page.set_viewport_size({"width": 1200, "height": 1100})
        with served(config.run) as address:
            page.goto(address)
            page.locator("#task input").click()
            page.get_by_role("option", name="RefCOCO", exact=True).click()
            page.get_by_text("Expression", exact=True).wait_for()
            page.click("#example")
            page.locator("#seen img").first.wait_for()
            page.click("#ask")
            page.locator("#took:has-text(' s')").wait_for()
            page.wait_for_timeout(1500)
            page.screenshot(path=shot)
        keep(shot, "demo.webp")
        browser.close()


if __name__ == "__main__":
    command(Config, run, "docs/pictures.py", "The pictures of the documentation.")
