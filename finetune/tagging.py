"""Nouns and adjectives of a sentence, as lemmas."""

import re
from collections.abc import Callable
from functools import lru_cache

from shards.errors import UserError

DEFAULT = "hanta"
_TOKEN = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*|\d+|[^\sA-Za-z\d]")
_HANTA_TAGS = ("NN", "NP", "AJ")  # of the British National Corpus: common and proper nouns, adjectives
_SPACY_TAGS = ("NOUN", "PROPN", "ADJ")

Tagger = Callable[[str], frozenset[str]]


def make_tagger(name: str) -> Tagger:
    """Sentence -> lemmas of its nouns and adjectives, in lower case.

    name: hanta (the Hanover tagger, whose English model comes with its package), or a model of spaCy, en_core_web_sm
    for one, which must be installed.
    """
    return lru_cache(maxsize=None)(_hanta() if name == DEFAULT else _spacy(name))


def _hanta() -> Tagger:
    from HanTa.HanoverTagger import HanoverTagger

    tagger = HanoverTagger("morphmodel_en.pgz")

    def tag(sentence: str) -> frozenset[str]:
        tokens = _TOKEN.findall(sentence.lower())  # a capital would make a name of a question's first word
        return frozenset(
            lemma.lower() for _, lemma, tag in tagger.tag_sent(tokens, taglevel=1) if tag.startswith(_HANTA_TAGS)
        )

    return tag


def _spacy(name: str) -> Tagger:
    try:
        import spacy

        model = spacy.load(name, disable=["ner", "parser"])
    except ImportError:
        raise UserError(f"--tagger {name}: needs one more package; pip install spacy, or leave --tagger out") from None
    except OSError:
        raise UserError(f"--tagger {name}: should be {DEFAULT} or an installed model of spaCy") from None

    def tag(sentence: str) -> frozenset[str]:
        return frozenset(token.lemma_.lower() for token in model(sentence) if token.pos_ in _SPACY_TAGS)

    return tag
