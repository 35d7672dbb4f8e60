"""Part-of-speech tagging: lemmas of the nouns and adjectives of a sentence."""

import re
from collections.abc import Callable
from functools import lru_cache

from shards.common.errors import UserError

DEFAULT_TAGGER = "hanta"
_TOKEN = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*|\d+|[^\sA-Za-z\d]")
_HANTA_TAGS = ("NN", "NP", "AJ")  # of the British National Corpus: common and proper nouns, adjectives
_SPACY_TAGS = ("NOUN", "PROPN", "ADJ")

Tagger = Callable[[str], frozenset[str]]


def make_tagger(name: str) -> Tagger:
    """A function from a sentence to the lower-case lemmas of its nouns and adjectives.

    name: hanta (the Hanover tagger, whose English model is included in its package), or an installed spaCy model, such
    as en_core_web_sm.
    """
    return lru_cache(maxsize=None)(_hanta() if name == DEFAULT_TAGGER else _spacy(name))


def _hanta() -> Tagger:
    from HanTa.HanoverTagger import HanoverTagger

    tagger = HanoverTagger("morphmodel_en.pgz")

    def tag(sentence: str) -> frozenset[str]:
        tokens = _TOKEN.findall(sentence.lower())  # a capitalised first word would be tagged as a proper noun
        return frozenset(
            lemma.lower() for _, lemma, tag in tagger.tag_sent(tokens, taglevel=1) if tag.startswith(_HANTA_TAGS)
        )

    return tag


def _spacy(name: str) -> Tagger:
    try:
        import spacy

        model = spacy.load(name, disable=["ner", "parser"])
    except ImportError:
        raise UserError(
            f"--tagger {name}: spaCy is not installed; pip install spacy, or use {DEFAULT_TAGGER}"
        ) from None
    except OSError:
        raise UserError(f"--tagger {name}: should be {DEFAULT_TAGGER} or an installed spaCy model") from None

    def tag(sentence: str) -> frozenset[str]:
        return frozenset(token.lemma_.lower() for token in model(sentence) if token.pos_ in _SPACY_TAGS)

    return tag
