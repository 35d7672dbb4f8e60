"""Tokenizers: that of a BERT, or a WordPiece vocabulary learned from the captions."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pretrain.tokenizer.common_words import CHARACTERS, COMMON_WORDS
from pretrain.tokenizer.wordpiece import INSIDE, learn_vocabulary
from shards.common.errors import UserError
from shards.common.files import whole_file
from shards.common.model_hub import load_failure, only_local
from shards.common.untrusted_input import reading, refuse_special_file

FILE = "tokenizer.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPieceTokenizer:
    """A BERT-like WordPiece tokenizer with the ids of its special tokens."""

    def __init__(self, tokenizer: Tokenizer, where: str):
        self.backend = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        with reading(where, "a BERT vocabulary is needed"):  # fails if the vocabulary lacks the unknown token
            tokenizer.encode_batch(["a \N{SNOWMAN}"], add_special_tokens=False)
        self.special = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        missing = [token for token, number in self.special.items() if number is None]
        if missing:
            raise UserError(f"{where}: the vocabulary has no {missing[0]}; a BERT vocabulary is needed")
        if self.special["[PAD]"] != 0:
            raise UserError(f"{where}: [PAD] has the token id {self.special['[PAD]']}; it must be 0")
        if len(self) <= len(SPECIAL):
            raise UserError(f"{where}: the vocabulary has only special tokens; a BERT vocabulary is needed")

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def mask_id(self) -> int:
        return self.special["[MASK]"]

    def ordinary_ids(self) -> torch.Tensor:
        """int64 (n,): the ids of all tokens that are not special, from which random tokens are sampled."""
        special = set(self.special.values())
        return torch.tensor([number for number in range(len(self)) if number not in special])

    def encode(self, texts: list[str], limit: int) -> list[list[int]]:
        """Token ids of texts, with [CLS] and [SEP], truncated to `limit`."""
        encoded = self.backend.encode_batch(texts, add_special_tokens=False)
        begin, end = self.special["[CLS]"], self.special["[SEP]"]
        return [[begin, *text.ids[: limit - 2], end] for text in encoded]

    def save(self, folder) -> None:
        with whole_file(Path(folder) / FILE, "w", encoding="utf-8") as file:
            file.write(self.backend.to_str(pretty=True))

    def is_saved(self, folder) -> bool:
        """Whether the tokenizer file of a directory contains this tokenizer."""
        return (Path(folder) / FILE).read_text(encoding="utf-8") == self.backend.to_str(pretty=True)


def load_tokenizer(folder) -> WordPieceTokenizer:
    """Loads the tokenizer.json of a run or of a BERT."""
    path = Path(folder) / FILE
    refuse_special_file(path)
    try:
        return WordPieceTokenizer(Tokenizer.from_file(str(path)), str(path))
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a missing or broken file
        raise UserError(f"{path}: is not a tokenizer ({error})") from None


def load_bert_tokenizer(name: str, flag: str = "--bert") -> WordPieceTokenizer:
    """Loads the tokenizer of a Hugging Face BERT: a directory, a vocab.txt, or a name on the hub or in its cache.

    A vocab.txt without a tokenizer_config.json is lower-cased.
    """
    path = Path(name)
    if (path / FILE).exists():
        return load_tokenizer(path)
    if path.is_dir() and not (path / "vocab.txt").exists():  # transformers would make an empty vocabulary
        raise UserError(f"{flag} {name}: contains neither tokenizer.json nor vocab.txt; copy that of the BERT there")
    from transformers import AutoTokenizer, BertTokenizerFast  # takes seconds to import, and most runs do not need it

    bare = path.is_dir() and not (path / "tokenizer_config.json").exists()
    words = path / "vocab.txt" if bare else path
    refuse_special_file(words, f"{flag} ")
    try:
        if words.is_file():
            tokenizer = BertTokenizerFast(str(words))
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, local_files_only=only_local(name))
    except Exception as error:  # from the hub, transformers, and tokenizers, which raises bare Exception
        kind = "contains no readable tokenizer" if path.exists() else "is neither a directory nor available on the hub"
        raise UserError(f"{flag} {name}: {kind} ({load_failure(error, name)})") from None
    return WordPieceTokenizer(tokenizer.backend_tokenizer, f"{flag} {name}")


def learn_tokenizer(texts: Iterable[str], size: int) -> WordPieceTokenizer:
    """Learns a lower-case WordPiece vocabulary of about `size` tokens; deterministic for the same texts.

    Common characters and words that the texts lack are added up to `size`.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces = learn_vocabulary(words, size, SPECIAL)
    letters = (form for letter in CHARACTERS for form in (letter, INSIDE + letter))
    more = dict.fromkeys(piece for piece in (*letters, *COMMON_WORDS) if piece not in set(pieces))
    pieces += list(more)[: max(0, size - len(pieces))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    return WordPieceTokenizer(tokenizer, "the learned vocabulary")
