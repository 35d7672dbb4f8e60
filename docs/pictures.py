"""The pictures of these pages, made by the commands that they show.

    python docs/pictures.py [--run runs/mt]
    python docs/pictures.py --photos runs/photos/seed0/mt/main-fold0 --folder skimage/data

The first call needs the run, its data (the miniature world), playwright and Chromium. The second call needs the
multi-task run of `make photos` and the pictures of scikit-image's wheel. Those of PHRASES may be published: they are in
the public domain or CC0 (skimage/data/_fetchers.py states it for each).
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

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

from finetune.inference.predictor import Predictor
from shards.common.cli import command, flag

PORT = 7869
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
IMAGE, EXPRESSION, WORD = "32385", "the large shape", "shape"  # of the miniature world
PHRASES = {  # picture in scikit-image's wheel -> phrases whose boxes are drawn
    "chelsea.png": ("a cat", "a nose"),
    "coffee.png": ("a cup of coffee", "a spoon"),
    "astronaut.png": ("a woman", "a flag"),
    "rocket.jpg": ("a rocket", "the night sky"),
}
WIDTH, HEIGHT = 480, 330  # of a cell, in pixels
COLOURS = ("#e6007e", "#00a0e6")  # of the boxes


@dataclass
class Config:
    """Flags of this script."""

    run: str = flag("runs/mt", "a run of many tasks on the miniature world")
    data: str = flag("data/world", "the world")
    photos: str | None = flag(None, "the multi-task run of benchmarks.photos, to make its picture instead")
    folder: str = flag("skimage/data", "the folder with the pictures of PHRASES")
    chromium: str = flag("/usr/bin/chromium", "the browser")


def call(module: str, *arguments) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def keep(path, name: str) -> None:
    keep_image(Image.open(path).convert("RGB"), name)


def keep_image(image: Image.Image, name: str) -> None:
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


def grounded(predictor: Predictor, path: Path, phrases: tuple[str, ...]) -> Image.Image:
    """A picture with the most likely region of each phrase."""
    picture = Image.open(path).convert("RGB")
    ratio = min(WIDTH / picture.width, HEIGHT / picture.height)
    cell = picture.resize((round(picture.width * ratio), round(picture.height * ratio)))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(18)
    for number, (phrase, colour) in enumerate(zip(phrases, COLOURS, strict=True)):
        found = predictor("flickr30k_entities", phrase, path, top=1)
        x1, y1, x2, y2 = (value * ratio for value in found.boxes[0])
        inset = 5 * number  # two phrases may have the same region
        box = (x1 + inset, y1 + inset, min(x2, cell.width) - 1 - inset, min(y2, cell.height) - 1 - inset)
        pen.rectangle(box, outline=colour, width=4)
        place = (box[0] + 8, box[1] + 6 if number == 0 else box[3] - 8)
        anchor = "la" if number == 0 else "ld"
        label = {"xy": place, "text": f"{phrase}  {found.confidence[0]:.0%}", "font": font, "anchor": anchor}
        pen.rectangle(pen.textbbox(**label), fill=colour)
        pen.text(**label, fill="white")
    return cell


def photographs(config: Config) -> None:
    """The phrases of PHRASES in their pictures, by a model that was trained on photographs."""
    predictor = Predictor(config.photos)
    cells = [grounded(predictor, Path(config.folder) / name, phrases) for name, phrases in PHRASES.items()]
    sheet = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), "white")
    for number, cell in enumerate(cells):
        x, y = number % 2 * WIDTH, number // 2 * HEIGHT
        sheet.paste(cell, (x + (WIDTH - cell.width) // 2, y + (HEIGHT - cell.height) // 2))
    keep_image(sheet, "photographs.webp")


def run(config: Config) -> None:
    if config.photos:
        photographs(config)
        return
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
