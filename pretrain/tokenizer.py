"""Texts to word-piece numbers: BERT's own tokenizer from a directory, or a vocabulary learned from the captions."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pretrain.common_words import CHARACTERS, COMMON_WORDS
from pretrain.wordpiece import INSIDE, learn_vocabulary
from shards.errors import UserError
from shards.files import whole_file
from shards.hub import only_local, unreachable
from shards.reading import reading

FILE = "tokenizer.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPieces:
    """A tokenizer with what pretraining must know of its vocabulary."""

    def __init__(self, tokenizer: Tokenizer, where: str):
        self.tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        with reading(where, "a BERT vocabulary is needed"):  # a vocabulary may lack the token of unknown words
            tokenizer.encode_batch(["a \N{SNOWMAN}"], add_special_tokens=False)
        self.special = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        missing = [token for token, number in self.special.items() if number is None]
        if missing:
            raise UserError(f"{where}: its vocabulary has no {missing[0]}; a BERT vocabulary is needed")
        if self.special["[PAD]"] != 0:
            raise UserError(f"{where}: [PAD] should be word piece 0 and is {self.special['[PAD]']}")
        if len(self) <= len(SPECIAL):
            raise UserError(f"{where}: its vocabulary has special tokens alone; a BERT vocabulary is needed")

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def mask_id(self) -> int:
        return self.special["[MASK]"]

    def ordinary_ids(self) -> torch.Tensor:
        """int64: every word piece that is not special, from which random words are drawn."""
        special = set(self.special.values())
        return torch.tensor([number for number in range(len(self)) if number not in special])

    def encode(self, texts: list[str], limit: int) -> list[list[int]]:
        """[CLS] pieces [SEP] of every text, `limit` numbers at the most."""
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        begin, end = self.special["[CLS]"], self.special["[SEP]"]
        return [[begin, *text.ids[: limit - 2], end] for text in encoded]

    def save(self, folder) -> None:
        with whole_file(Path(folder) / FILE, "w", encoding="utf-8") as file:
            file.write(self.tokenizer.to_str(pretty=True))

    def is_saved(self, folder) -> bool:
        """Whether a directory has this tokenizer in its file."""
        return (Path(folder) / FILE).read_text(encoding="utf-8") == self.tokenizer.to_str(pretty=True)


def load_pieces(folder) -> WordPieces:
    """The tokenizer of a directory that has it in a file: of a run, or of a BERT."""
    path = Path(folder) / FILE
    try:
        return WordPieces(Tokenizer.from_file(str(path)), str(path))
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a missing or broken file
        raise UserError(f"{path}: is not a tokenizer ({error})") from None


def bert_pieces(name: str, flag: str = "--bert") -> WordPieces:
    """The tokenizer of a Hugging Face BERT: a directory, a vocab.txt, or a name that the hub or its cache knows.

    A vocab.txt without a configuration beside it is of lower case.
    """
    path = Path(name)
    if (path / FILE).exists():
        return load_pieces(path)
    if path.is_dir() and not (path / "vocab.txt").exists():  # of which transformers would make an empty vocabulary
        raise UserError(f"{flag} {name}: holds neither tokenizer.json nor vocab.txt; copy the BERT's there")
    from transformers import AutoTokenizer, BertTokenizerFast  # take seconds to import, and most runs need neither

    bare = path.is_dir() and not (path / "tokenizer_config.json").exists()
    words = path / "vocab.txt" if bare else path
    try:
        if words.is_file():
            tokenizer = BertTokenizerFast(str(words))
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, local_files_only=only_local(name))
    except Exception as error:  # of the hub, of transformers, and of tokenizers, which raises bare Exception
        kind = "has no tokenizer that can be read" if path.exists() else "is neither a directory nor to be had"
        raise UserError(f"{flag} {name}: {kind} ({str(error).splitlines()[0]}{unreachable(name)})") from None
    return WordPieces(tokenizer.backend_tokenizer, f"{flag} {name}")


def learn_pieces(texts: Iterable[str], size: int) -> WordPieces:
    """A lower-case WordPiece vocabulary of about `size` pieces from texts; the same texts give the same one.

    Everyday characters and words that are not among them are added while there is room.
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
    return WordPieces(tokenizer, "the learned vocabulary")
