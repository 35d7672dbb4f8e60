"""Short runs on the small world, made once for the tests of fine-tuning, and a browser to look at pages with."""

import shutil

import pytest
from launching import python

from finetune import tasks


@pytest.fixture(autouse=True)
def no_tasks_of_other_tests():
    """A task of a TOML file is known in a process from then on."""
    before = dict(tasks._own)
    yield
    tasks._own.clear()
    tasks._own.update(before)


@pytest.fixture(scope="session")
def runs_on_world(tmp_path_factory):
    """The folder of the runs that several files of tests share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def pretrained(world, runs_on_world):
    run = runs_on_world / "pretrained"
    done = python("pretrain.run", "--data", world, "--out", run, "--epochs", 1, "--workers", 0, "--batch_size", 20)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def contrastive(world, runs_on_world):
    """A pretraining run of a model with a contrastive head, after a few steps."""
    run = runs_on_world / "contrastive"
    flags = ("--contrastive", 1, "--steps", 3, "--batch_size", 20, "--workers", 0)
    done = python("pretrain.run", "--data", world, "--out", run, *flags)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def trained(world, pretrained, runs_on_world):
    """A run of all tasks, barely trained."""
    run = runs_on_world / "trained"
    done = python("finetune.mt", "--data", world, "--init", pretrained, "--workers", 0, "--iterations", 4, "--out", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def chromium():
    """The machine's own Chromium, driven by playwright.

    Of a module, not of the session: data workers that later tests fork would hold its pipes, and it would never end.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        pytest.skip("there is no Chromium on this machine (Debian: apt install chromium)")
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


class Opened:
    """A page in the browser. problems: errors of its scripts, and what it asked of other places than its own."""

    def __init__(self, page, address: str, home: str):
        self.page, self.problems = page, []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda sent: None if sent.url.startswith(("data:", "blob:", home)) else self.problems.append(sent.url),
        )
        page.goto(address)

    def __getattr__(self, name):
        return getattr(self.page, name)

    def excess_on_a_phone(self) -> int:
        """Pixels by which the page is wider than a screen of 375 pixels."""
        self.page.set_viewport_size({"width": 375, "height": 800})
        return self.page.evaluate("document.documentElement.scrollWidth") - 375


@pytest.fixture
def look(chromium):
    """Opens a file, or an address of this machine, in a new window: look(PATH) -> Opened."""
    windows = []

    def open_page(address, **options) -> Opened:
        windows.append(chromium.new_page(viewport={"width": 1200, "height": 900}, **options))
        windows[-1].set_default_timeout(20000)
        here = str(address) if str(address).startswith("http") else f"file://{address}"
        return Opened(windows[-1], here, here if here.startswith("http") else "file:")

    yield open_page
    for window in windows:
        window.close()
