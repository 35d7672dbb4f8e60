"""Weights that users have: published state dicts in their several forms, through the path of load and convert."""

import json
import pickle
import shutil

import pytest
import torch
from conftest import PARITY
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from pretrain import load
from pretrain.engine.checkpoint import best_checkpoint
from pretrain.models.model_config import model_config_from
from pretrain.pretrained.find_weights import find_weights
from pretrain.pretrained.load_model import load_pretraining
from shards.common.errors import UserError

OUTPUTS = {  # of the pretraining model and of the tasks', through load
    "pretrain": {"pre_scores_t", "pre_scores_v", "pre_rel"},
    "tasks": {"task_seq_t", "task_seq_v", "task_pool_t", "task_pool_v"},
}


@pytest.fixture
def published(parity, tmp_path):
    """published(KIND, FORM) -> a file of weights with the JSON file of its sizes beside it."""

    def write(kind: str, form: str = "bin", config: str | None = "sizes.json"):
        folder = tmp_path / kind
        folder.mkdir()
        weights = parity[f"{kind}_weights"]
        if config:
            shutil.copy(PARITY / "config.json", folder / config)
        (folder / "vocab.txt").write_text("\n".join(words()))
        path = folder / f"weights.{'safetensors' if form == 'safetensors' else 'bin'}"
        if form == "safetensors":
            save_file(weights, path)
        elif form == "old":  # as torch wrote files when the published ones were made
            torch.save(weights, path, _use_new_zipfile_serialization=False)
        elif form == "module":
            torch.save({f"module.{name}": value for name, value in weights.items()}, path)
        elif form == "wrapped":
            torch.save({"model_state_dict": weights, "global_step": 7}, path)
        else:
            torch.save(weights, path)
        return path

    return write


def words() -> list[str]:
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(195))]


def outputs(path, x, kind: str, **options) -> dict:
    """The named outputs of the published implementation, from a model that was loaded from a path."""
    inputs = (x["input_ids"], x["text_mask"].bool(), x["features"], x["locations"], x["region_mask"].bool())
    with torch.no_grad():
        if kind == "pretrain":
            model = load_pretraining(path, **options)
            encoded = model.encoder(*inputs, x["segment_ids"])
            scores = (model.word_scores(encoded.text), model.regions(encoded.image))
            return dict(
                zip(sorted(OUTPUTS[kind]), (model.alignment(model.encoder.fuse(encoded)), *scores), strict=True)
            )
        encoded = load(path, **options)(*inputs, x["segment_ids"], x["task_ids"][:, 0])
        return {
            "task_seq_t": encoded.text,
            "task_seq_v": encoded.image,
            "task_pool_t": encoded.pooled_text,
            "task_pool_v": encoded.pooled_image,
        }


@pytest.mark.filterwarnings("ignore:.*unexpected keys")
@pytest.mark.parametrize("form", ["bin", "old", "module", "wrapped", "safetensors"])
@pytest.mark.parametrize("kind", ["pretrain", "tasks"])
def test_every_form_gives_the_published_outputs(parity, published, kind, form):
    found = outputs(published(kind, form), parity["inputs"], kind)
    assert set(found) == OUTPUTS[kind]
    for name, value in found.items():
        torch.testing.assert_close(value, parity["outputs"][name], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*unexpected keys")
@pytest.mark.parametrize("kind", ["pretrain", "tasks"])
def test_bf16_stays_within_its_bounds(parity, published, kind):
    """The bounds that docs/published.md states, as shares of an output's largest value."""
    path = published(kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(path, parity["inputs"], kind)
    for name, value in found.items():
        theirs = parity["outputs"][name]
        error = (value.float() - theirs).abs() / theirs.abs().max()
        few = value.numel() < 100  # of the alignment's ten scores, how they are rounded is the processor's affair
        assert 0 < error.mean() < (2**-8 if few else 3e-3) and error.max() < 1.5e-2, (name, error.mean(), error.max())


@pytest.mark.filterwarnings("ignore:.*unexpected keys")
@pytest.mark.parametrize("kind", ["pretrain", "tasks"])
def test_converted_to_a_run_and_back(parity, published, tmp_path, run_command, kind):
    source, run, back = published(kind), tmp_path / "run", tmp_path / "back.bin"
    status, out, err = run_command("pretrain.convert", source, "--out", run)
    assert (status, err) == (0, "")
    assert "unexpected keys, ignored: bert.encoder.c_layer.0 (4)" in out and ("linguisic_logit (2)" in out) == (
        kind == "tasks"
    )
    for name, value in outputs(run, parity["inputs"], kind).items():
        torch.testing.assert_close(value, parity["outputs"][name], atol=1e-5, rtol=0)
    status, out, err = run_command("pretrain.convert", run, "--out", back, "--to", "published")
    assert (status, err) == (0, "")
    theirs, weights = torch.load(back, weights_only=True), parity[f"{kind}_weights"]
    assert set(weights) - set(theirs) == ({f"linguisic_logit.{part}" for part in ("weight", "bias")} & set(weights))
    for name, value in theirs.items():
        assert value.shape == weights[name].shape and value.dtype == torch.float32
        assert torch.equal(value, weights[name]) or ("q_dense" in name and not value.any()), name
    sizes = json.loads((tmp_path / "back.json").read_text())
    published_sizes = json.loads((PARITY / "config.json").read_text())
    assert set(sizes) == set(published_sizes)
    assert {key for key in sizes if sizes[key] != published_sizes[key]} <= {"vocab_size", "v_target_size"}


def test_safetensors_come_out_too(published, tmp_path, run_command):
    back = tmp_path / "back.safetensors"
    assert run_command("pretrain.convert", published("pretrain"), "--out", back, "--to", "published")[0] == 0
    assert "cls.predictions.decoder.weight" in load_file(back)
    status, _, err = run_command("pretrain.convert", published("tasks"), "--out", tmp_path / "x", "--to", "published")
    assert status == 2 and "must end in .bin or .safetensors" in err


def test_what_is_missing_or_has_no_place_is_named(parity, published, tmp_path):
    path = published("tasks")
    with pytest.warns(
        UserWarning, match=r"unexpected keys, ignored: bert\.encoder\.c_layer\.0 \(4\).*linguisic_logit \(2\)"
    ):
        load(path)
    weights = dict(parity["pretrain_weights"])
    del weights["bert.encoder.v_layer.2.output.dense.bias"]
    torch.save(weights, path)
    with pytest.raises(UserError, match=r"missing keys: encoder\.image_layers\.2 \(1\)"):
        load(path)
    del weights["bert.encoder.v_layer.2.attention.self.key.bias"]
    torch.save(weights, path)
    with pytest.raises(UserError, match=r"no key matrix for encoder\.image_layers\.2\.query_key_value\.bias"):
        load(path)


def test_sizes_are_found_or_asked_for(published, tmp_path):
    path = published("pretrain", config="config.json")
    assert find_weights(str(path)).sizes.t_biattention_id == (1, 2, 3)
    (path.parent / "other.json").write_text((PARITY / "config.json").read_text())
    assert find_weights(str(path)).sizes.num_hidden_layers == 4  # config.json comes before files of other names
    (path.parent / "config.json").rename(path.parent / "one.json")
    with pytest.raises(UserError, match=r"next to it: one\.json, other\.json; select one with --config"):
        find_weights(str(path))
    assert find_weights(str(path), str(PARITY / "config.json")).sizes.v_feature_size == 24
    (path.parent / "one.json").unlink()
    (path.parent / "other.json").unlink()
    # Without a file, the sizes are the published ones.
    with pytest.raises(UserError, match=r"has the shape \(48,\), but \(768,\) in the model; the configurations"):
        load(path)


def test_a_folder_with_one_file_of_weights_will_do(published):
    path = published("pretrain")
    assert find_weights(str(path.parent)).file == path
    shutil.copy(path, path.parent / "again.pt")
    with pytest.raises(UserError, match="contains 2 files of weights"):
        find_weights(str(path.parent))


def test_the_tokenizer_must_be_that_of_the_weights(published, tmp_path):
    found = find_weights(str(published("pretrain")))
    assert len(found.load_tokenizer()) == 200
    (tmp_path / "vocab.txt").write_text("\n".join(words()[:150]))
    with pytest.raises(UserError, match=r"has 150 tokens, but .* 200; use the tokenizer"):
        found.load_tokenizer(str(tmp_path / "vocab.txt"))
    (found.file.parent / "vocab.txt").unlink()
    with pytest.raises(UserError, match="--tokenizer bert-base-uncased: is neither"):
        found.load_tokenizer()


def test_the_tokenizer_of_a_run_must_fit_its_model(published, tmp_path, run_command):
    assert run_command("pretrain.convert", published("pretrain"), "--out", tmp_path / "run")[0] == 0
    tokenizer = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["more"] = 200
    (tmp_path / "run" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokenizer\.json: has 201 tokens, but the vocab_size of the model is 200"):
        find_weights(str(tmp_path / "run")).load_tokenizer()


def test_converted_weights_keep_their_tokenizer(published, tmp_path, run_command):
    source, out = published("pretrain"), tmp_path / "mine" / "weights.bin"
    assert run_command("pretrain.convert", source, "--out", tmp_path / "run")[0] == 0
    for given in (tmp_path / "run", source):
        status, said, err = run_command("pretrain.convert", given, "--out", out, "--to", "published")
        assert status == 0 and f"tokenizer in {out.parent}/tokenizer.json" in said, err
    ours, theirs = (find_weights(str(path)).load_tokenizer() for path in (tmp_path / "run", out))
    assert ours.backend.to_str() == theirs.backend.to_str() and len(theirs) == 200
    (source.parent / "vocab.txt").write_text("\n".join([*words()[:-1], "another"]))
    status, _, err = run_command("pretrain.convert", source, "--out", out, "--to", "published")
    assert status == 2 and "mine contains a different tokenizer.json; use another folder" in err


class Planted:
    def __reduce__(self):
        return (print, ("this file ran code",))


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (
            lambda path: path.write_bytes(pickle.dumps({"a": Planted()})),
            "expected a complete file with nothing but tensors",
        ),
        (lambda path: torch.save({"a": Planted()}, path), "expected a complete file with nothing but tensors"),
        (lambda path: torch.save({"a": 1}, path), "should be a state dict"),
        (lambda path: torch.save([torch.zeros(2)], path), "should be a state dict"),
        (lambda path: torch.save({"a": torch.zeros(2)}, path), "no word embeddings found"),
        (lambda path: path.write_bytes(b""), "expected a complete file with nothing but tensors"),
        (lambda path: path.write_text("text"), "expected a complete file with nothing but tensors"),
    ],
    ids=["pickle", "code", "numbers", "list", "other", "empty", "text"],
)
def test_files_that_are_something_else(tmp_path, capfd, write, complaint):
    path = tmp_path / "weights.bin"
    write(path)
    with pytest.raises(UserError, match=complaint) as refused:
        load(path)
    assert "ran code" not in capfd.readouterr().out and "\n" not in str(refused.value)


def test_a_cut_file(published):
    for form in ("bin", "safetensors"):
        path = published("pretrain" if form == "bin" else "tasks", form)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=r"weights\.(bin|safetensors): "):
            load(path)


def test_a_bert_gives_the_text_stream(tmp_path):
    sizes = model_config_from(json.loads((PARITY / "config.json").read_text()), "")
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = BertConfig(max_position_embeddings=64, **{name: getattr(sizes, name) for name in names})
    theirs = BertModel(config)
    theirs.save_pretrained(tmp_path / "bert")
    new = r"missing keys, initialised randomly: .*encoder\.connections\.0 \(2\d\).*unexpected keys, ignored: pooler"
    with pytest.warns(UserWarning, match=new):
        model = load(tmp_path / "bert", str(PARITY / "config.json"))
    assert torch.equal(model.text_layers[3].feed_forward.up.weight, theirs.encoder.layer[3].intermediate.dense.weight)


def test_converting_is_refused_where_it_makes_no_sense(published, tmp_path, run_command):
    run = tmp_path / "run"
    assert run_command("pretrain.convert", published("pretrain"), "--out", run)[0] == 0
    for arguments, complaint in [
        ([run, "--out", tmp_path / "again"], "is already a run"),
        ([tmp_path / "pretrain" / "weights.bin", "--out", run], "already contains a run"),
        ([tmp_path / "nothing", "--out", tmp_path / "again"], "no such file or directory"),
        (
            [run, "--out", tmp_path / "x.bin", "--to", "published", "--config", "base"],
            "a run with its own configuration",
        ),
    ]:
        status, _, err = run_command("pretrain.convert", *arguments)
        assert status == 2 and complaint in err and err.count("\n") == 1
    assert best_checkpoint(run).name == "step-00000000"


def test_there_is_no_training_to_resume(published, tmp_path, run_command, dataset_folder):
    run = tmp_path / "run"
    run_command("pretrain.convert", published("pretrain"), "--out", run)
    status, _, err = run_command("pretrain.run", "--data", dataset_folder, "--out", run, "--resume", "--workers", 0)
    assert status == 2 and "contains weights but no optimizer state to resume from" in err
