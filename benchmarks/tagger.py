"""Precision and recall of the tagger of finetune.consistency for nouns and adjectives in the miniature world.

    python benchmarks/tagger.py [--data data/world] [--sentences 600]

The nouns and adjectives of the miniature world are known: the words for shapes, colours, sizes and patterns, and a few
more. Left, right, top and bottom are excluded, because grammars differ on them. A word is found if its lemma is; the
baseline tags every word.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # files of this folder have the names of what they measure

import numpy as np

from finetune.evaluation.pos_tagger import DEFAULT_TAGGER, make_tagger
from finetune.tasks import all_tasks
from shards.common.cli import command, flag
from shards.world.captions import NOUNS, PATTERN_WORDS, SIZES
from shards.world.language import ANY, plural_of
from shards.world.scenes import COLOURS

MORE = ("color", "shape", "picture", "number")  # nouns of its questions
UNSURE = {"left", "right", "top", "bottom", "above", "below", "over", "under"}


@dataclass
class Config:
    """Flags of this benchmark."""

    data: str = flag("data/world", "folder of the miniature world")
    sentences: int = flag(600, "number of sentences, half of them questions", low=2)
    tagger: str = flag(DEFAULT_TAGGER, "tagger: hanta, or an installed model of spaCy")


def known_words() -> dict[str, str]:
    """Word -> its lemma, of all nouns and adjectives of the world."""
    nouns = {word for names in NOUNS.values() for name in names for word in name.split()} | {*ANY, *MORE}
    adjectives = {word for words in (*SIZES.values(), *PATTERN_WORDS.values()) for word in words} | set(COLOURS)
    return {plural_of(noun): noun for noun in nouns} | {word: word for word in nouns | adjectives}


def sentences(data: Path, count: int) -> list[str]:
    """Questions of VQA and expressions of RefCOCO, RefCOCO+ and RefCOCOg, each kind spread over its data set."""
    tasks, found = all_tasks(), []
    for name, share in (("vqa", 3), ("refcoco", 1), ("refcoco+", 1), ("refcocog", 1)):
        texts = list(dict.fromkeys(example.text for example in tasks[name].examples(data / name, "train")))
        found += [texts[int(n)] for n in np.linspace(0, len(texts) - 1, count * share // 6)]
    return found


def run(config: Config) -> None:
    tag, known = make_tagger(config.tagger), known_words()
    ways = {"every word": lambda text: set(re.findall("[a-z]+", text.lower())), config.tagger: tag}
    texts = sentences(Path(config.data), config.sentences)
    print(f"{len(texts)} sentences\n{'':<12} {'precision':>10} {'recall':>8} {'F1':>8}")
    for name, way in ways.items():
        right, said, there, missed = 0, 0, 0, {}
        for text in texts:
            gold = {known[word] for word in re.findall("[a-z]+", text.lower()) if word in known}
            found = set(way(text)) - UNSURE
            right, said, there = right + len(gold & found), said + len(found), there + len(gold)
            for word in gold ^ found:
                missed[word] = missed.get(word, 0) + 1
        precision, recall = right / said, right / there
        print(f"{name:<12} {precision:10.1%} {recall:8.1%} {2 * precision * recall / (precision + recall):8.1%}")
    worst = sorted(missed.items(), key=lambda item: -item[1])[:8]
    print(f"{config.tagger}'s commonest mistakes: {', '.join(f'{word} ({times})' for word, times in worst)}")


if __name__ == "__main__":
    command(Config, run, "benchmarks/tagger.py", __doc__.splitlines()[0], sys.argv[1:])
