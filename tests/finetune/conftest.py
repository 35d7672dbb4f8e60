"""Short runs on the small world, made once for the tests of fine-tuning, and a browser to look at pages with."""

import json
import shutil

import pytest

from finetune import tasks


@pytest.fixture(autouse=True)
def no_tasks_of_other_tests():
    """A task of a TOML file is known in a process from then on."""
    before = dict(tasks._own)
    yield
    tasks._own.clear()
    tasks._own.update(before)


@pytest.fixture(scope="session")
def pretrained(world, made_once):
    flags = ("--epochs", 1, "--batch_size", 20, "--workers", 0)
    return made_once("pretrained", "pretrain.run", "--data", world, *flags)


@pytest.fixture(scope="session")
def narrow(world, pretrained, made_once, tmp_path_factory):
    """A pretraining run of a smaller model, for tests that train much and need no good scores."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "t_biattention_id": (1,)}
    sizes |= {"v_hidden_size": 32, "v_num_hidden_layers": 1, "v_intermediate_size": 32, "v_biattention_id": (0,)}
    sizes |= {"bi_hidden_size": 32}
    config = tmp_path_factory.mktemp("narrow") / "narrow.json"
    config.write_text(json.dumps(json.loads((pretrained / "config.json").read_text())["model"] | sizes))
    flags = ("--config", config, "--steps", 2, "--batch_size", 20, "--workers", 0)
    return made_once("narrow", "pretrain.run", "--data", world, *flags)


@pytest.fixture(scope="session")
def contrastive(world, made_once):
    """A pretraining run of a model with a contrastive head, after a few steps."""
    flags = ("--contrastive", 1, "--steps", 3, "--batch_size", 20, "--workers", 0)
    return made_once("contrastive", "pretrain.run", "--data", world, *flags)


@pytest.fixture(scope="session")
def trained(world, pretrained, made_once):
    """A run of all tasks, barely trained, with two records of the gradients."""
    flags = ("--init", pretrained, "--workers", 0, "--iterations", 4, "--track", "true", "--track_every", 2)
    return made_once("trained", "finetune.mt", "--data", world, *flags)


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
