"""WordNet's nouns, read from its database files (wndb(5)), and the similarity of Wu and Palmer (1994).

Senses and similarities are the same as NLTK's for the same files.
"""

import functools
import os
from pathlib import Path

from finetune.annotations.official_files import read_text
from shards.common.errors import UserError
from shards.common.untrusted_input import refuse_special_file

DATA, INDEX, EXCEPTIONS = FILES = ("data.noun", "index.noun", "noun.exc")
DEBIAN = "/usr/share/wordnet"  # folder of Debian's package wordnet-base
FOLDER_VARIABLE = "WNSEARCHDIR"  # environment variable of WordNet's own programs
HYPERNYMS = ("@", "@i")  # pointer symbols: hypernym, instance hypernym
# Plural endings and their replacements (morphy(7)).
ENDINGS = {
    "s": "",
    "ses": "s",
    "ves": "f",
    "xes": "x",
    "zes": "z",
    "ches": "ch",
    "shes": "sh",
    "men": "man",
    "ies": "y",
}


def find_nouns() -> "Nouns | None":
    """The nouns in the folder $WNSEARCHDIR, else in that of Debian's package; None if the files do not exist."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or DEBIAN)
    return read_nouns(folder) if all((folder / name).is_file() for name in FILES) else None


@functools.lru_cache(maxsize=1)
def read_nouns(folder: Path) -> "Nouns":
    """The nouns of a folder with FILES; cached, because reading them takes a second."""
    return Nouns(folder)


class Nouns:
    """The nouns of WordNet. A sense is identified by the offset of its line in data.noun."""

    def __init__(self, folder: Path):
        self._path = folder / DATA
        refuse_special_file(self._path)
        self._data = self._path.read_bytes()
        self._senses = {}
        for where, line in read_text(folder / INDEX):
            word, *fields = line.split()
            if not word.isdecimal() or fields[:1] == ["n"]:  # lines of the licence begin with a line number
                try:
                    self._senses[word] = tuple(map(int, fields[-int(fields[1]) :]))
                except (ValueError, IndexError):
                    raise UserError(f"{where}: is not a valid line of {INDEX}; install WordNet's files again") from None
        self._irregular = {
            word: singular for _, line in read_text(folder / EXCEPTIONS) for word, *singular in [line.split()]
        }
        self._parents: dict[int, tuple[int, ...]] = {}
        self._above: dict[int, dict[int, int]] = {}
        self._longest: dict[int, int] = {}

    def senses(self, word: str) -> list[int]:
        """The senses of a word, and of its possible singular forms."""
        word = word.lower()
        singular = self._irregular.get(word) or [
            word.removesuffix(end) + other for end, other in ENDINGS.items() if word.endswith(end)
        ]
        forms = dict.fromkeys([word, *singular])
        return [sense for form in forms for sense in self._senses.get(form, ())]

    def _fields(self, sense: int) -> list[str]:
        end = self._data.find(b"\n", sense)
        return self._data[sense:end].decode("utf-8").partition("|")[0].split()

    def parents(self, sense: int) -> tuple[int, ...]:
        """The hypernyms and instance hypernyms of a sense."""
        if sense not in self._parents:
            fields = self._fields(sense)
            try:
                pointers = fields[4 + 2 * int(fields[3], 16) :]  # each word has two fields
                of = (pointers[1 + 4 * n : 5 + 4 * n] for n in range(int(pointers[0])))
                found = tuple(int(offset) for symbol, offset, _, _ in of if symbol in HYPERNYMS)
            except (ValueError, IndexError):
                raise UserError(f"{self._path}: no sense at byte {sense}; install the files again") from None
            self._parents[sense] = found
        return self._parents[sense]

    def name(self, sense: int) -> str:
        """The name of a sense, such as dog.n.01: its first word and the number of the sense among the word's."""
        word = self._fields(sense)[4].lower()
        return f"{word}.n.{self._senses[word].index(sense) + 1:02d}"

    def above(self, sense: int) -> dict[int, int]:
        """Ancestor -> length of the shortest path to it, for all ancestors of a sense and the sense itself (0)."""
        if sense not in self._above:
            found, level, length = {sense: 0}, [sense], 0
            while level:
                length += 1
                level = [parent for child in level for parent in self.parents(child) if parent not in found]
                found |= dict.fromkeys(level, length)
            self._above[sense] = found
        return self._above[sense]

    def depth(self, sense: int) -> int:
        """The length of the shortest path from a sense to a root."""
        return min(length for found, length in self.above(sense).items() if not self.parents(found))

    def greatest_depth(self, sense: int) -> int:
        """The length of the longest path from a sense to a root."""
        if sense not in self._longest:
            self._longest[sense] = max((1 + self.greatest_depth(of) for of in self.parents(sense)), default=0)
        return self._longest[sense]

    def similarity(self, one: int, other: int) -> float:
        """Wu and Palmer's similarity: twice the depth of the deepest common ancestor, over the sum of the depths of
        both senses along paths through it; 0 without a common ancestor.

        The deepest common ancestor is the one with the greatest `depth`; of several, the sense `one` itself or else the
        first by name. The depth in the formula is its `greatest_depth` + 1.
        """
        above, of_other = self.above(one), self.above(other)
        common = above.keys() & of_other.keys()
        if not common:
            return 0.0
        depths = {sense: self.depth(sense) for sense in common}
        deepest = [sense for sense, depth in depths.items() if depth == max(depths.values())]
        ancestor = one if one in deepest else min(deepest, key=self.name)
        depth, beyond = self.greatest_depth(ancestor) + 1, self.above(ancestor)
        ways = [min(of[sense] + beyond[sense] for sense in of.keys() & beyond.keys()) for of in (above, of_other)]
        return 2 * depth / (sum(ways) + 2 * depth)
