"""python -m finetune.demo --run RUN: a local web demo of a model."""

import html
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from finetune.inference.demo_backend import CANDIDATES, TOP, DemoBackend
from finetune.inference.image_upload import Uploads
from finetune.inference.request import IMAGES
from finetune.pages.html_page import need
from finetune.predict import ModelFlags
from shards.common.cli import command, flag
from shards.common.errors import UserError
from shards.images.image_files import SUFFIXES, find_parts

WORDS = {  # head -> (label of the text field, example text)
    "vqa": ("Question", "How many stars are there?"),
    "gqa": ("Question", "What color is the star?"),
    "regions": ("Expression", "the red star on the left"),
    "candidates": ("Question or dialogue", "Which one is red?"),
    "retrieval": ("Caption", "a red star and a blue disc"),
    "nlvr2": ("Statement about two images", "There are more stars on the left."),
    "entailment": ("Statement", "There is a star."),
}
STYLE = "iframe.attention { width: 100%; height: 56rem; border: 0; border-radius: .5rem; }"


@dataclass
class DemoConfig(ModelFlags):
    """Flags of finetune.demo."""

    images: str | None = flag(None, "folder of images that retrieval ranks", unset="validation images of the data")
    ranked: int = flag(24, "number of these images that are used, the first ones", low=2)
    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0 allows access from other machines")
    port: int = flag(7860, "port to listen on", low=1, high=65535)
    megabytes: float = flag(10.0, "maximum size of an uploaded file, in MB", above=0)
    megapixels: float = flag(25.0, "maximum size of an uploaded image, in millions of pixels", above=0)
    seconds: float = flag(10.0, "maximum time to decode an uploaded image, in seconds", above=0)


def is_own_host(header: str, host: str) -> bool:
    """Whether a request's Host header names this machine: an IP address, localhost, --host, or its host name.

    This prevents DNS rebinding: a foreign page whose domain resolves to this address would otherwise be served in the
    visitor's browser.
    """
    name = re.sub(r":\d+$", "", header.strip().lower()).strip("[]")
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        own = socket.gethostname().lower()
        return name in ("localhost", host.lower(), own, f"{own}.local", socket.getfqdn().lower())


class OwnHost:
    """ASGI middleware that answers requests for other host names than this machine's with status 421."""

    def __init__(self, app, host: str):
        self.app, self.host = app, host

    async def __call__(self, scope, receive, send) -> None:
        headers = dict(scope.get("headers") or ())
        if scope["type"] != "http" or is_own_host(headers.get(b"host", b"").decode("latin-1"), self.host):
            await self.app(scope, receive, send)
            return
        kind = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 421, "headers": kind})
        await send({"type": "http.response.body", "body": b"this page is not served under this name; see --host\n"})


def build(desk: DemoBackend):
    """The gradio page."""
    try:
        import gradio
    except ImportError as error:
        raise need("demo", "gradio", error) from None

    def with_errors(function):
        """Wraps a function so that a UserError is shown as a message on the page."""

        def call(*values):
            try:
                return function(*values)
            except UserError as error:
                raise gradio.Error(str(error), print_exception=False) from None

        return call

    def labels(task):
        """(label of the text field, example text, label of the image field)."""
        label, instance = WORDS.get(task.head, ("Text", ""))
        images = "two images, the left one first" if task.name in IMAGES else "an image"
        if task.head == "retrieval":
            images = f"two or more images; without any, {len(desk.pool(task))} images of the data are ranked"
        return label, instance, f"Images: {images}"

    def choose(title):
        task = desk.tasks[title]
        label, instance, images = labels(task)
        return (
            gradio.update(label=label, placeholder=instance, value=""),
            gradio.update(label=images, value=None),
            gradio.update(visible=task.head == "candidates", value=""),
        )

    def preview(files):
        return [(desk.uploads.read(file)[0], Path(file).name) for file in files or ()]

    def ask(title, text, files, boxes):
        answer = desk.ask(title, text, files, boxes)
        confidence = dict(zip(answer.prediction.choices, answer.prediction.confidence, strict=True))
        frame = f'<iframe class="attention" sandbox="allow-scripts" srcdoc="{html.escape(answer.attention)}"></iframe>'
        ranking = gradio.update(value=answer.ranking, visible=bool(answer.ranking))
        return confidence, answer.shown, ranking, f"{answer.seconds:.2f} s", frame

    first = next(iter(desk.tasks.values()))
    label, instance, images = labels(first)
    candidates = f"Candidates: x1,y1,x2,y2; ... in pixels (empty: {CANDIDATES} detected regions)"
    kinds = [f".{suffix}" for suffix in SUFFIXES]
    with gradio.Blocks(title=desk.predictor.run, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"## Ask `{desk.predictor.run}`")
        with gradio.Row():
            with gradio.Column():
                task = gradio.Dropdown(list(desk.tasks), value=first.title, label="Task", elem_id="task")
                text = gradio.Textbox(label=label, placeholder=instance, elem_id="text")
                files = gradio.File(label=images, file_count="multiple", file_types=kinds, height=140, elem_id="files")
                boxes = gradio.Textbox(label=candidates, visible=first.head == "candidates", elem_id="boxes")
                with gradio.Row():
                    example = gradio.Button("An example", elem_id="example")
                    go = gradio.Button("Ask", variant="primary", elem_id="ask")
                seen = gradio.Gallery(label="Images", columns=2, height=320, object_fit="contain", elem_id="seen")
            with gradio.Column():
                answer = gradio.Label(label="Answer", num_top_classes=TOP, elem_id="answer")
                shown = gradio.Image(label="Where", height=320, buttons=["fullscreen"], elem_id="shown")
                ranking = gradio.Gallery(label="Ranking", columns=3, visible=False, elem_id="ranking")
                took = gradio.Markdown(elem_id="took")
        attention = gradio.HTML(elem_id="attention")
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
        task.change(choose, task, [text, files, boxes], **one_at_a_time)
        files.change(with_errors(preview), files, seen, **one_at_a_time)
        example.click(with_errors(desk.example), task, [text, files, boxes], **one_at_a_time)
        inputs, outputs = [task, text, files, boxes], [answer, shown, ranking, took, attention]
        gradio.on([go.click, text.submit], with_errors(ask), inputs, outputs, **one_at_a_time)
    return page


def run(config: DemoConfig) -> None:
    try:
        socket.getaddrinfo(config.host, config.port)
    except (OSError, UnicodeError):  # UnicodeError: not a valid host name
        raise UserError(f"--host {config.host}: not a known host name or address") from None
    parts = find_parts(config.images, 1000, unique=False) if config.images else []
    files = [file for part in parts for file in part.files]
    if any(file.endswith(".tar") for file in files):
        raise UserError(f"--images {config.images}: should be a folder of image files")
    predictor = config.predictor()
    uploads = Uploads(config.megabytes, config.megapixels, config.seconds)
    page = build(DemoBackend(predictor, uploads, files, config.ranked)).queue(max_size=32)
    _ = predictor.model, predictor.detector  # load them before the first request
    try:
        page.launch(
            server_name=config.host,
            server_port=config.port,
            max_file_size=round(config.megabytes * 1e6),
            share=False,
            quiet=True,
            css=STYLE,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [(OwnHost, (), {"host": config.host})]},
        )
        print(f"http://{config.host}:{config.port} (press Ctrl-C to stop)", flush=True)
        page.block_thread()
    except OSError:
        place = f"--host {config.host} --port {config.port}"
        reason = "the port is in use, or the address is not this machine's"
        raise UserError(f"{place}: cannot listen on this address; {reason}") from None
    finally:
        uploads.close()


if __name__ == "__main__":
    command(DemoConfig, run, "finetune.demo", "A local web demo of a model.")
