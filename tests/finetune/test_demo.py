"""The live page: every task is answered as predict answers, hostile files get a sentence, and a browser can use it."""

import functools
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from launching import free_port
from PIL import Image

from finetune.inference.image_upload import LONG_SIDE, Uploads
from finetune.inference.predictor import Predictor
from finetune.pages.demo_backend import DemoBackend
from finetune.pages.host_check import is_own_host
from finetune.tasks import paper_tasks
from shards.common.errors import UserError

TASKS = paper_tasks()


@pytest.fixture(scope="module")
def uploads():
    uploads = Uploads(megabytes=1, pixels=8, seconds=30)
    yield uploads
    uploads.close()


@pytest.fixture(scope="module")
def desk(trained, uploads):
    return DemoBackend(Predictor(trained), uploads, ranked=5)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A small PNG that claims side x side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def animated(frames: int) -> bytes:
    images = [Image.new("L", (32, 32), n % 256) for n in range(frames)]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:])
    return file.getvalue()


HOSTILE = {
    "text.png": (b"I am no image", "text.png: cannot be decoded (unknown image format)"),
    "empty.jpg": (b"", "empty.jpg: cannot be decoded"),
    "bomb.png": (bomb(60000), "bomb.png: has more than 8000000 pixels"),
    "large.png": (bomb(3000), "large.png: has 3000 x 3000 pixels, more than 8000000"),
    "heavy.png": (os.urandom(1_100_000), "heavy.png: 1.1 MB exceed the limit of 1 MB"),
    "cut.png": (bomb(100), "cut.png: cannot be decoded"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_a_sentence(uploads, tmp_path, name):
    data, sentence = HOSTILE[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as refused:
        uploads.read(tmp_path / name)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_of_an_animation_the_first_frame_is_taken(uploads, tmp_path):
    (tmp_path / "a.gif").write_bytes(animated(2000))
    image, scale = uploads.read(tmp_path / "a.gif")
    assert image.shape == (32, 32, 3) and not image.any() and scale == 1


def test_large_images_are_made_smaller(uploads, tmp_path):
    Image.new("RGB", (2 * LONG_SIDE, 100), "red").save(tmp_path / "a.png")
    image, scale = uploads.read(tmp_path / "a.png")
    assert image.shape == (50, LONG_SIDE, 3) and scale == 0.5 and (image == [255, 0, 0]).all()


def test_what_takes_too_long_is_given_up_and_the_next_file_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (2400, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "slow.png", compress_level=1)
    Image.new("RGB", (8, 8)).save(tmp_path / "fast.png")
    hasty = Uploads(megabytes=100, pixels=8, seconds=0.001)
    try:
        with pytest.raises(UserError, match=r"slow.png: took longer than 0.001 s to decode"):
            hasty.read(tmp_path / "slow.png")
        hasty.seconds = 30
        assert hasty.read(tmp_path / "fast.png")[0].shape == (8, 8, 3)
        for process in hasty._pool._processes.values():  # as one that runs out of memory is
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"fast.png: cannot be decoded \(the decoding process was killed\)"):
            hasty.read(tmp_path / "fast.png")
        assert hasty.read(tmp_path / "fast.png")[0].shape == (8, 8, 3)
    finally:
        hasty.close()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_answered(desk, name):
    task = TASKS[name]
    text, files, boxes = desk.example(task.title)
    answer = desk.ask(task.title, text, files, boxes)
    assert answer.shown.dtype == np.uint8 and answer.shown.ndim == 3 and answer.attention.startswith("<!doctype html>")
    if task.head.ranks_images:
        assert files == [] and len(answer.ranking) == 5 and answer.prediction.confidence[0] >= 0.2
        expected = desk.predictor(name, text, *desk.pool(task))
        assert [Path(path).name for path in expected.choices] == answer.prediction.choices
    else:
        given = [tuple(map(float, box.split(","))) for box in boxes.split(";")] if boxes else []
        expected = desk.predictor(name, text, *files, boxes=given)
        assert answer.prediction.choices == expected.choices and answer.ranking == []
        np.testing.assert_allclose(answer.prediction.confidence, expected.confidence, atol=1e-5)
    drawn = (answer.shown == [0xE6, 0x9F, 0x00]).all(-1).any()
    assert drawn == (task.head.layer_name == "pointing")


def test_an_examples_images_are_copies_that_a_page_may_show(desk, world):
    """The page shows files below the working directory and of the folder of temporary files alone."""
    _, [file], _ = desk.example("RefCOCO")
    assert Path(file).is_relative_to(tempfile.gettempdir()) and not Path(file).is_relative_to(world)
    assert Path(file).read_bytes() == (world / "images" / "coco" / Path(file).name).read_bytes()


def test_candidates_are_the_detectors_own_where_none_are_given(desk):
    text, files, _ = desk.example("Visual7W")
    answer = desk.ask("Visual7W", text, files, "")
    assert 1 <= len(answer.prediction.boxes) <= 5 and answer.prediction.choices[0].startswith("candidate ")


def test_boxes_are_in_the_files_own_pixels(desk, tmp_path):
    Image.new("RGB", (2 * LONG_SIDE, 2000), "red").save(tmp_path / "a.png")
    answer = desk.ask("Visual7W", "Which?", [tmp_path / "a.png"], "0,0,3200,2000; 100,100,900,700")
    assert sorted(answer.prediction.boxes) == [(0, 0, 1600, 1000), (50, 50, 450, 350)]


@pytest.mark.parametrize(
    ("title", "text", "count", "boxes", "complaint"),
    [
        ("VQA v2", " ", 1, "", "the text is empty"),
        ("VQA v2", "a" * 5_000_000, 1, "", "the text has 5000000 characters; at most 10000 are allowed"),
        ("VQA v2", "what \ud800?", 1, "", "the text contains a lone surrogate"),
        ("Visual7W", "Which?", 1, "nan,nan,nan,nan", "should be four numbers"),
        ("VQA v2", "What?", 0, "", "VQA v2 takes 1 image; 0 were given"),
        ("NLVR2", "Both.", 1, "", "NLVR2 takes 2 images; 1 were given"),
        ("Visual7W", "Which?", 1, "1,2", "--boxes 1,2: should be four numbers"),
    ],
)
def test_mistakes(desk, title, text, count, boxes, complaint):
    _, files, _ = desk.example("RefCOCO")
    with pytest.raises(UserError) as refused:
        desk.ask(title, text, files[:count], boxes)
    assert complaint in str(refused.value)


@pytest.fixture(scope="module")
def address(trained):
    """The command as users start it; it is stopped as they stop it."""
    pytest.importorskip("gradio")
    port = free_port()
    command = [sys.executable, "-m", "finetune.demo", "--run", str(trained), "--port", str(port), "--megabytes", "1"]
    heeds_interrupts = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # though this process may not
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heeds_interrupts)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=10).close()
            break
        except OSError:
            time.sleep(0.1)
    yield address
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert address in said and process.returncode in (0, 130)


HOSTS = {
    "127.0.0.1:7860": True,
    "localhost:7860": True,
    "LOCALHOST": True,
    "[::1]:7860": True,
    "192.168.0.7:7860": True,
    "demo.example:7860": True,
    "evil.example:7860": False,
    "127.0.0.1.evil.example": False,
    "localhost.evil.example:7860": False,
    "": False,
}


@pytest.mark.parametrize("header", HOSTS)
def test_hosts_of_this_machine_are_told_from_others(header):
    assert is_own_host(header, "demo.example") == HOSTS[header]


def test_a_request_under_a_foreign_name_is_refused(address):
    """As of a page whose name was made to lead to this machine (DNS rebinding)."""
    for path in ("", "/config", "/gradio_api/info"):
        request = urllib.request.Request(address + path, headers={"Host": "evil.example:7860"})
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(request, timeout=10)
    request = urllib.request.Request(f"{address}/config", headers={"Host": "localhost"})
    assert urllib.request.urlopen(request, timeout=10).status == 200


def test_galleries_show_whole_images(address):
    page = json.load(urllib.request.urlopen(f"{address}/config", timeout=10))
    galleries = [part["props"] for part in page["components"] if part["type"] == "gallery"]
    assert {gallery["elem_id"]: gallery["object_fit"] for gallery in galleries} == {
        "seen": "contain",
        "ranking": "contain",
    }


def test_a_question_in_the_browser(address, look):
    opened = look(address)
    opened.wait_for_selector("#ask")
    opened.click("#example")
    opened.wait_for_function("document.querySelector('#text textarea, #text input').value.length > 3")
    opened.wait_for_selector("#seen img")
    opened.click("#ask")
    opened.wait_for_selector("#took:has-text(' s')")
    assert "%" in opened.inner_text("#answer")
    inside = opened.frame_locator("iframe.attention")
    inside.locator(".word >> nth=2").hover()
    assert "attends to" in inside.locator("#summary").inner_text()
    assert opened.problems == []


def test_an_empty_question_is_one_message_in_the_browser(address, look):
    opened = look(address)
    opened.wait_for_selector("#ask")
    opened.click("#ask")
    opened.wait_for_selector("text=the text is empty")
    assert opened.locator("text=the text is empty").count() == 1
    assert opened.locator("#answer >> text=Error").count() == 0 and opened.locator("#shown >> text=Error").count() == 0


def test_a_hostile_file_in_the_browser(address, look, tmp_path):
    (tmp_path / "text.png").write_text("I am no image")
    opened = look(address)
    opened.wait_for_selector("#ask")
    opened.set_input_files("#files input[type=file]", tmp_path / "text.png")
    opened.wait_for_selector("text=text.png: cannot be decoded (unknown image format)")
    assert opened.problems == []


def test_a_killed_page_leaves_no_process_behind(trained, tmp_path):
    """Its decoding process ends with it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    script = (
        "import sys; from finetune.inference.image_upload import Uploads\n"
        "if __name__ == '__main__':\n"
        "    one = Uploads(1, 1, 30); one.read(sys.argv[1]); print(*one._pool._processes, flush=True); sys.stdin.read()"
    )
    (tmp_path / "page.py").write_text(script)
    command = [sys.executable, tmp_path / "page.py", tmp_path / "a.png"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        worker = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists(), "the decoding process lives on"


def test_another_program_on_the_port(address, trained, run_command):
    port = address.rpartition(":")[2]
    status, _, err = run_command("finetune.demo", "--run", trained, "--port", port)
    assert status == 2 and f"--port {port}: cannot listen on this address; the port" in err and "Traceback" not in err


def test_flags_that_do_not_fit(trained, world, tmp_path, run_command):
    status, _, err = run_command("finetune.demo", "--run", trained, "--images", tmp_path)
    assert status == 2 and "contains no images" in err
    status, _, err = run_command("finetune.demo", "--run", tmp_path, "--data", world)
    assert status == 2 and f"--run {tmp_path}: contains no complete checkpoint and no weights" in err
    status, _, err = run_command("finetune.demo", "--run", trained, "--host", "a..b")
    assert status == 2 and err == "error: --host a..b: not a known host name or address\n"
