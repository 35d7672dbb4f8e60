"""The web page of finetune.demo, and its server."""

import html
from collections.abc import Callable
from pathlib import Path

from finetune.pages.demo_backend import CANDIDATES, TOP, DemoBackend
from finetune.pages.host_check import OwnHost
from finetune.pages.html_page import missing_packages
from finetune.task_types.base import Task
from shards.common.errors import UserError
from shards.images.image_files import SUFFIXES

STYLE = """
iframe.attention { width: 100%; height: 56rem; border: 0; border-radius: .5rem; }
@media (max-width: 52rem) { iframe.attention { height: 85vh; } }
"""
INDEPENDENT = "Answer (a confidence for each choice on its own; they do not add up to 100%)"
RANKED = "Answer (probabilities among the ranked images)"


def demo_page(backend: DemoBackend):
    """The page, a gradio.Blocks."""
    try:
        import gradio
    except ImportError as error:
        raise missing_packages("demo", "gradio", error) from None

    def choose(title):
        task = backend.tasks[title]
        label, instance, images = _labels(backend, task)
        return (
            gradio.update(label=label, placeholder=instance, value=""),
            gradio.update(label=images, value=None),
            gradio.update(visible=task.head.has_candidates, value=""),
        )

    def preview(files):
        return [(backend.uploads.read(file)[0], Path(file).name) for file in files or ()]

    def ask(title, text, files, boxes):
        answer = backend.ask(title, text, files, boxes)
        confidence = dict(zip(answer.prediction.choices, answer.prediction.confidence, strict=True))
        frame = f'<iframe class="attention" sandbox="allow-scripts" srcdoc="{html.escape(answer.attention)}"></iframe>'
        ranking = gradio.update(value=answer.ranking, visible=bool(answer.ranking))
        found = gradio.update(value=confidence, label=RANKED if answer.ranking else INDEPENDENT)
        return found, answer.shown, ranking, f"{answer.seconds:.2f} s", frame

    first = next(iter(backend.tasks.values()))
    label, instance, images = _labels(backend, first)
    candidates = f"Candidates: x1,y1,x2,y2; ... in pixels (empty: {CANDIDATES} detected regions)"
    kinds = [f".{suffix}" for suffix in SUFFIXES]
    with gradio.Blocks(title=backend.predictor.run, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"## Ask `{backend.predictor.run}`")
        with gradio.Row():
            with gradio.Column():
                task = gradio.Dropdown(list(backend.tasks), value=first.title, label="Task", elem_id="task")
                text = gradio.Textbox(label=label, placeholder=instance, elem_id="text")
                files = gradio.File(label=images, file_count="multiple", file_types=kinds, height=140, elem_id="files")
                boxes = gradio.Textbox(label=candidates, visible=first.head.has_candidates, elem_id="boxes")
                with gradio.Row():
                    example = gradio.Button("An example", elem_id="example")
                    go = gradio.Button("Ask", variant="primary", elem_id="ask")
                seen = gradio.Gallery(label="Images", columns=2, height=320, object_fit="contain", elem_id="seen")
            with gradio.Column():
                answer = gradio.Label(label="Answer", num_top_classes=TOP, elem_id="answer")
                shown = gradio.Image(label="Where", height=320, buttons=["fullscreen"], elem_id="shown")
                ranking = gradio.Gallery(
                    label="Ranking", columns=3, object_fit="contain", visible=False, elem_id="ranking"
                )
                took = gradio.Markdown(elem_id="took")
        attention = gradio.HTML(elem_id="attention")
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
        task.change(choose, task, [text, files, boxes], **one_at_a_time)
        files.change(_with_errors(gradio, preview), files, seen, **one_at_a_time)
        example.click(_with_errors(gradio, backend.example, 3), task, [text, files, boxes], **one_at_a_time)
        inputs, outputs = [task, text, files, boxes], [answer, shown, ranking, took, attention]
        gradio.on([go.click, text.submit], _with_errors(gradio, ask, len(outputs)), inputs, outputs, **one_at_a_time)
    return page


def serve(page, host: str, port: int, megabytes: float) -> None:
    """Serves the page until Ctrl-C.

    Args:
        page: result of `demo_page`.
        host: address to listen on.
        port: port to listen on.
        megabytes: maximum size of an uploaded file.

    Raises:
        UserError: it is not possible to listen there.
    """
    page.queue(max_size=32)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            max_file_size=round(megabytes * 1e6),
            share=False,
            quiet=True,
            css=STYLE,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [(OwnHost, (), {"host": host})]},
        )
        print(f"http://{host}:{port} (press Ctrl-C to stop)", flush=True)
        page.block_thread()
    except OSError:
        reason = "the port is in use, or the address is not this machine's"
        raise UserError(f"--host {host} --port {port}: cannot listen on this address; {reason}") from None


def _with_errors(gradio, function: Callable, outputs: int = 1) -> Callable:
    """Wraps a function so that a UserError is shown as one message on the page, and its outputs stay as they are.

    A raised gradio.Error would also mark each output as failed.
    """

    def call(*values):
        try:
            return function(*values)
        except UserError as error:
            gradio.Warning(str(error), title="Error")
            return gradio.skip() if outputs == 1 else (gradio.skip(),) * outputs

    return call


def _labels(backend: DemoBackend, task: Task) -> tuple[str, str, str]:
    """(label of the text field, example text, label of the image field)."""
    head = task.head
    images = f"{head.images_per_example} images, the left one first" if head.images_per_example > 1 else "an image"
    if head.ranks_images:
        images = f"two or more images; without any, {len(backend.pool(task))} images of the data are ranked"
    return head.input_label, head.input_example, f"Images: {images}"
