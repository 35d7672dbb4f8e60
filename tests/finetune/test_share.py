"""A run as one folder: equal weights and predictions wherever a command takes a run, nothing of the machine in it."""

import itertools
import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch

from finetune.inference.embedder import Embedder
from finetune.predict import Predictor
from finetune.run_dirs.model_folder import _remove_paths
from pretrain import load
from pretrain.engine.checkpoint import MODEL, best_checkpoint, read_tensors
from shards.common.errors import UserError
from shards.common.model_hub import local_model

QUESTION = ("vqa", "What color is the star?")


@pytest.fixture
def share(run_command, tmp_path):
    def call(run, *flags, out="shared"):
        return run_command("finetune.share", str(run), "--out", str(tmp_path / out), *map(str, flags))

    return call


@pytest.fixture
def shared(share, trained, tmp_path):
    status, _, err = share(trained, "--license", "mit")
    assert status == 0, err
    return tmp_path / "shared"


@pytest.fixture
def image(world):
    return sorted((world / "images" / "pairs").glob("*.png"))[0]


def test_weights_are_equal_bit_for_bit_and_predictions_too(shared, trained, image):
    ours, theirs = read_tensors(best_checkpoint(trained), MODEL), read_tensors(best_checkpoint(shared), MODEL)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert Predictor(shared)(*QUESTION, image) == Predictor(trained)(*QUESTION, image)
    texts = ["a red star"]
    assert np.array_equal(Embedder(shared).texts(texts).pooled, Embedder(trained).texts(texts).pooled)
    assert all(
        torch.equal(a, b)
        for a, b in zip(load(shared).state_dict().values(), load(trained).state_dict().values(), strict=True)
    )


def test_of_weights_in_a_folder_whose_name_has_a_comma_the_file_name_is_kept(tmp_path):
    weights, described = tmp_path / "my,models" / "dino.safetensors", tmp_path / "dataset.json"
    weights.parent.mkdir()
    weights.touch()
    for given, kept in ((weights, "dino.safetensors"), ("/x/a.pth,/y/b.pth", "a.pth,b.pth")):
        described.write_text(json.dumps({"extra": {"plan": {"weights": str(given)}}}))
        _remove_paths(described)
        assert json.loads(described.read_text())["extra"]["plan"]["weights"] == kept


def test_the_folder_has_no_path_of_the_machine_and_no_optimizer(shared, world, trained):
    names = {str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "checkpoint.json"} <= names
    assert any(name.startswith("answers-") for name in names) and "detector/dataset.json" in names
    assert not any(name.endswith((".bin", ".pkl", ".pt", "training.safetensors")) for name in names)
    for folder, name in itertools.product((world.parent, trained.parent), names):
        assert str(folder).encode() not in (shared / name).read_bytes(), name


def test_training_starts_from_it(shared, run_command, world, tmp_path):
    flags = ("--task", "refcoco", "--data", world, "--init", shared, "--out", tmp_path / "st", "--epochs", 1)
    status, _, err = run_command("finetune.st", *map(str, flags), "--workers", "0")
    assert status == 0, err
    assert json.loads((tmp_path / "st" / "config.json").read_text())["start"]["kind"] == "AT->ST"


def test_the_card_has_the_scores_with_intervals(shared, trained):
    card = (shared / "README.md").read_text()
    result = json.loads((trained / "result.json").read_text())["tasks"]["vqa"]
    low, high = result["interval"]
    assert card.startswith("---\nlicense: mit\n") and "library_name: twelve-in-one" in card
    row = f"| VQA v2 | validation | {result['score']:.1%} | {low:.1%} to {high:.1%} | {result['examples']} |"
    assert row in card
    assert "`--iterations 4`" in card and "| decontaminated (Clean V&L) | no |" in card


def test_a_pretraining_run_and_a_shared_folder_can_be_shared(share, pretrained, shared, tmp_path):
    assert share(pretrained, out="pretrained")[0] == 0
    card = (tmp_path / "pretrained" / "README.md").read_text()
    result = json.loads((pretrained / "result.json").read_text())["validation"]
    assert "pretrained on image-caption pairs" in card and "`--batch_size 20`" in card and "--workers" not in card
    assert f"| masked tokens | {result['word_accuracy']:.1%} |" in card
    assert share(shared, out="again")[0] == 0
    assert (tmp_path / "again" / MODEL).read_bytes() == (shared / MODEL).read_bytes()
    assert share(pretrained, out="again")[0] == 0, "a folder that was written before is replaced"


def test_what_cannot_be_shared_is_one_sentence(share, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    for run, out, flags, message in [
        (trained, "mine", (), "mine: contains other files; use a new folder"),
        (tmp_path / "none", "new", (), "contains no run with a complete checkpoint"),
        (trained, "new", ("--hub", "name"), "--hub name: should be OWNER/NAME"),
    ]:
        status, _, err = share(run, *flags, out=out)
        assert status == 2 and message in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"] and not (tmp_path / "new").exists()


def test_a_damaged_folder_is_refused(shared):
    with open(shared / MODEL, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(UserError, match="SHA-256 differs"):
        load(shared)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose repositories are folders in the layout of its cache: a function from OWNER/NAME to the folder."""

    def place(name):
        cached = huggingface_hub.file_download.repo_folder_name(repo_id=name, repo_type="model")
        return tmp_path / "hub" / cached / "snapshots" / "0123456789abcdef0123456789abcdef01234567"

    def snapshot_download(name, revision, allow_patterns, local_files_only):
        if not place(name).is_dir() or revision not in (None, "main"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        return str(place(name))

    def create_repo(name, private, exist_ok):
        place(name).mkdir(parents=True)
        return f"hub/{name}"

    def upload_folder(repo_id, folder_path, allow_patterns):
        shutil.copytree(folder_path, place(repo_id), dirs_exist_ok=True)

    for function in (snapshot_download, create_repo, upload_folder):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    monkeypatch.setattr("shards.common.model_hub._answers", lambda address: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return place


def test_models_on_the_hub_are_taken_by_name(hub, share, trained, image, run_command, tmp_path):
    status, out, err = share(trained, "--hub", "me/twelve")
    assert status == 0 and "--run hf:me/twelve" in out, err
    assert (hub("me/twelve") / MODEL).exists()
    assert Predictor("hf:me/twelve")(*QUESTION, image) == Predictor(trained)(*QUESTION, image)
    flags = ("--run", "hf:me/twelve", "--task", QUESTION[0], "--text", QUESTION[1])
    status, out, err = run_command("finetune.predict", str(image), *flags)
    assert status == 0 and out.strip(), err
    for name, message in [("hf:me/none", "not in the cache"), ("hf:none", "should be hf:OWNER/NAME")]:
        with pytest.raises(UserError, match=message):
            local_model(name)
        status, _, err = run_command("finetune.st", "--task", "vqa", "--init", name, "--out", str(tmp_path / "st"))
        assert status == 2 and message in err and err.count("\n") == 1


def test_an_upload_that_is_refused_is_one_sentence(hub, share, trained, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Invalid token\nmore")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    status, _, err = share(trained, "--hub", "me/twelve")
    assert status == 2 and "cannot be uploaded (Invalid token); log in" in err and err.count("\n") == 1


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", [Predictor, Embedder])
def test_save_pretrained_writes_what_the_command_writes_and_from_pretrained_reads_it(kind, trained, shared, tmp_path):
    saved = kind(trained).save_pretrained(tmp_path / "saved", license="mit")
    assert contents(saved) == contents(shared)
    again = kind.from_pretrained(saved, device="cpu").save_pretrained(tmp_path / "again", license="mit")
    assert isinstance(kind.from_pretrained(saved), kind)
    ours, theirs = (read_tensors(best_checkpoint(run), MODEL) for run in (trained, again))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    names = contents(saved).keys() - {"README.md"}  # of a saved folder the card has no scores
    assert {name: contents(again)[name] for name in names} == {name: contents(saved)[name] for name in names}
    assert Predictor.from_pretrained(again).model.state_dict().keys() == Predictor(trained).model.state_dict().keys()


def test_push_to_hub_and_from_pretrained_by_name(hub, trained, shared, image, monkeypatch, tmp_path):
    assert Predictor(trained).push_to_hub("me/twelve", license="mit") == "hub/me/twelve"
    assert contents(hub("me/twelve")) == contents(shared)
    expected = Predictor(trained)(*QUESTION, image)
    for name, revision in [
        ("me/twelve", None),
        ("hf:me/twelve", None),
        ("me/twelve", "main"),
        ("hf:me/twelve@main", None),
    ]:
        assert Predictor.from_pretrained(name, revision=revision)(*QUESTION, image) == expected
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shared, tmp_path / "me" / "twelve")
    assert Predictor.from_pretrained("me/twelve").run == "me/twelve", "an existing folder takes precedence"


def test_what_these_methods_cannot_do_is_one_sentence(hub, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    for call, message in [
        (lambda: Predictor.from_pretrained("me/none"), "hf:me/none: not in the cache"),
        (lambda: Predictor.from_pretrained("me/none", revision="v2"), "hf:me/none@v2: not in the cache"),
        (lambda: Predictor.from_pretrained(trained, revision="v2"), "revision v2: is of a model on the hub"),
        (lambda: Embedder(trained).push_to_hub("name"), "name: should be OWNER/NAME"),
        (lambda: Embedder(trained).save_pretrained(tmp_path / "mine"), "mine: contains other files"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            call()
        assert "--" not in str(raised.value)


def test_the_weights_are_read_once(share, trained, monkeypatch):
    """They can be gigabytes. The checksum is computed while they are copied."""
    opened = []

    def counting(file, mode="r", *arguments, **named):
        if str(file).endswith(MODEL) and "r" in mode:
            opened.append(str(file))
        return original(file, mode, *arguments, **named)

    original = open
    monkeypatch.setattr("builtins.open", counting)
    monkeypatch.setattr("pretrain.engine.checkpoint.load_file", lambda path: opened.append(str(path)))
    status, _, err = share(trained)
    assert status == 0 and len(opened) == 1, (err, opened)


def test_damaged_weights_are_not_shared(share, shared, tmp_path):
    with open(shared / MODEL, "r+b") as file:
        file.write(b"0")
    for out in ("new", "kept"):
        if out == "kept":
            (tmp_path / out).mkdir()
        status, _, err = share(shared, out=out)
        assert status == 2 and "SHA-256 differs" in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists() and contents(tmp_path / "kept") == {}


def test_scores_of_a_model_on_the_hub_are_not_stored_in_its_cache(
    hub, share, trained, run_command, world, tmp_path, monkeypatch
):
    assert share(trained, "--hub", "me/twelve")[0] == 0
    before = contents(hub("me/twelve"))
    monkeypatch.chdir(tmp_path)
    flags = ("--run", "hf:me/twelve", "--data", str(world), "--task", "refcoco", "--workers", "0")
    status, out, err = run_command("finetune.evaluate", *flags)
    assert status == 0, err
    path = "runs/hub/me--twelve-01234567/scores/refcoco-val.json"
    assert f"scores: {path}" in out and json.loads((tmp_path / path).read_text())["task"] == "refcoco"
    assert contents(hub("me/twelve")) == before
