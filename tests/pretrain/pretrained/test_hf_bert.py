"""The text stream alone is BERT, with the weights of a Hugging Face BERT on disk."""

import json

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizerFast

from pretrain.models.model_config import TINY
from pretrain.models.packing import SequenceLayout
from pretrain.models.pretraining_heads import PretrainingModel
from pretrain.pretrained.find_weights import find_weights
from pretrain.pretrained.hf_bert import load_bert
from pretrain.tokenizer.tokenizer import load_bert_tokenizer
from shards.common.errors import UserError

SIZES = TINY.replace(vocab_size=60, num_hidden_layers=4, t_biattention_id=(2, 3))


def bert_config(**changes) -> BertConfig:
    sizes = {
        "vocab_size": SIZES.vocab_size,
        "hidden_size": SIZES.hidden_size,
        "num_hidden_layers": SIZES.num_hidden_layers,
        "num_attention_heads": SIZES.num_attention_heads,
        "intermediate_size": SIZES.intermediate_size,
        "max_position_embeddings": SIZES.max_position_embeddings,
    }
    return BertConfig(**sizes | changes)


@pytest.fixture(params=[BertModel, BertForMaskedLM])
def bert(request, tmp_path):
    torch.manual_seed(1)
    model = request.param(bert_config()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    return model, str(tmp_path)


@pytest.mark.parametrize("pickled", [False, True])
def test_hidden_states_equal_berts_up_to_the_first_connection(bert, pickled, tmp_path):
    theirs, folder = bert
    if pickled:
        (tmp_path / "model.safetensors").unlink()
        state = {
            f"bert.{name}" if isinstance(theirs, BertModel) else name: v for name, v in theirs.state_dict().items()
        }
        old = {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for n, v in state.items()
        }
        torch.save(old, tmp_path / "pytorch_model.bin")
    ours = PretrainingModel(SIZES).eval()
    load_bert(ours, folder)
    ids = torch.randint(5, 60, (3, 11))
    lengths = torch.tensor([11, 4, 7])
    mask = torch.arange(11) < lengths[:, None]
    segments = torch.randint(0, 2, (3, 11))
    base = theirs if isinstance(theirs, BertModel) else theirs.bert
    states = base(ids, mask.long(), segments, output_hidden_states=True).hidden_states
    x = ours.encoder.text_embedding(ids, segments, None)
    torch.testing.assert_close(x, states[0], atol=1e-5, rtol=0)
    for number in range(2):
        x = ours.encoder.text_layers[number](x, SequenceLayout(mask))
        torch.testing.assert_close(x[mask], states[number + 1][mask], atol=1e-5, rtol=0)


def test_the_word_head_comes_along_where_bert_has_one(tmp_path):
    theirs = BertForMaskedLM(bert_config()).eval()
    torch.nn.init.normal_(theirs.cls.predictions.bias)
    theirs.save_pretrained(tmp_path)
    ours = PretrainingModel(SIZES).eval()
    assert "words.bias" in load_bert(ours, str(tmp_path))[0]
    states = torch.randn(5, SIZES.hidden_size)
    torch.testing.assert_close(ours.word_scores(states), theirs.cls(states), atol=1e-5, rtol=0)


def test_other_sizes_are_refused_by_name(tmp_path):
    BertModel(bert_config(intermediate_size=64)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"text_layers\.0\.feed_forward\.up\.bias has the shape \(64,\)"):
        load_bert(PretrainingModel(SIZES), str(tmp_path))


def test_fewer_layers_are_refused_by_name(tmp_path):
    BertModel(bert_config(num_hidden_layers=3)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"missing keys: .*encoder\.text_layers\.3"):
        load_bert(PretrainingModel(SIZES), str(tmp_path))


def test_of_more_layers_the_first_are_used(tmp_path):
    BertModel(bert_config(num_hidden_layers=6)).save_pretrained(tmp_path)
    model = PretrainingModel(SIZES)
    names, layers = load_bert(model, str(tmp_path))
    assert layers == 6 and set(names) <= dict(model.named_parameters()).keys() | {"words.bias"}
    assert "encoder.text_layers.3.feed_forward.up.bias" in names


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"num_attention_heads": 2}, "num_attention_heads is 2, and 4"), ({"hidden_act": "relu"}, "hidden_act is 'relu'")],
)
def test_what_shapes_do_not_show_is_compared(tmp_path, changed, message):
    """Both load without any missing or unexpected key, and compute something else."""
    BertModel(bert_config(**changed)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_bert(PretrainingModel(SIZES), str(tmp_path))
    (tmp_path / "sizes.json").write_text(json.dumps(SIZES.to_dict()))
    with pytest.raises(UserError, match=message):
        find_weights(str(tmp_path), str(tmp_path / "sizes.json"))


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_bert(PretrainingModel(SIZES), str(tmp_path))


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.txt"], ["vocab.txt", "tokenizer_config.json"]], ids=str)
def test_the_tokenizer_of_the_directory_is_used(tmp_path, files):
    """What BERTs have on disk, from the oldest with their words alone to the newest with all in one file."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "dog"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "words.txt"))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    for path in tmp_path.iterdir():
        if path.name not in files:
            path.unlink()
    ours = load_bert_tokenizer(str(tmp_path))
    assert len(ours) == len(words)
    texts = ["A cats dog", "zebra a a a a a a"]
    assert ours.encode(texts, 6) == [tokenizer(text, truncation=True, max_length=6)["input_ids"] for text in texts]
    assert ours.ordinary_ids().tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("words", [None, b"\xff\xfe\x00no text"])
def test_a_missing_or_broken_tokenizer_is_one_sentence(tmp_path, words):
    if words:
        (tmp_path / "vocab.txt").write_bytes(words)
    complaint = "contains no readable tokenizer" if words else "contains neither tokenizer.json nor vocab.txt"
    with pytest.raises(UserError, match=complaint):
        load_bert_tokenizer(str(tmp_path / "vocab.txt" if words else tmp_path))


def test_a_bert_with_weights_and_config_alone_is_refused(bert):
    """Of its config alone transformers makes a tokenizer to which every word is unknown."""
    with pytest.raises(
        UserError, match=r"contains neither tokenizer\.json nor vocab\.txt; copy that of the BERT there"
    ):
        load_bert_tokenizer(bert[1])


def test_a_vocabulary_of_special_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    with pytest.raises(UserError, match="the vocabulary has only special tokens"):
        load_bert_tokenizer(str(tmp_path))
