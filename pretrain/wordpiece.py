"""Learning a WordPiece vocabulary by merging frequent neighbours, the same from the same texts every time.

The trainers of the tokenizers library break ties by the order of a randomly seeded hash table, so two runs on
one set of captions get two vocabularies; a run could not be repeated.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

INSIDE = "##"  # before a piece that does not begin a word


def learn_vocabulary(word_counts: dict[str, int], size: int, special: Iterable[str]) -> list[str]:
    """At most `size` pieces (more only where the letters alone are more): special ones, letters, merged pieces.

    Every letter is there as a word's beginning and as its inside, so any word of known letters can be written.
    word_counts: how often each word comes. The commonest pair of neighbours is merged first, of equally common
    ones the first in alphabetical order, down to pairs that come twice.
    """
    words = sorted(word_counts)
    counts = [word_counts[word] for word in words]
    pieces = [[word[0], *(INSIDE + letter for letter in word[1:])] for word in words]
    letters = sorted({form for word in words for letter in word for form in (letter, INSIDE + letter)})
    vocabulary = dict.fromkeys([*special, *letters])
    pairs: Counter = Counter()
    places = defaultdict(set)
    for number, split in enumerate(pieces):
        for pair in itertools.pairwise(split):
            pairs[pair] += counts[number]
            places[pair].add(number)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while heap and len(vocabulary) < size:
        count, pair = heapq.heappop(heap)
        if -count != pairs[pair]:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))  # its count has changed since it was pushed
            continue
        if -count < 2:
            break
        merged = pair[0] + pair[1].removeprefix(INSIDE)
        vocabulary[merged] = None
        changed = set()
        for number in places.pop(pair):
            before = pieces[number]
            pieces[number] = after = _merge(before, pair, merged)
            for old in itertools.pairwise(before):
                pairs[old] -= counts[number]
            for new in itertools.pairwise(after):
                pairs[new] += counts[number]
                places[new].add(number)
                changed.add(new)
        for new in changed:
            if merged in new:
                heapq.heappush(heap, (-pairs[new], new))
    return list(vocabulary)


def _merge(pieces: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    result, position = [], 0
    while position < len(pieces):
        if tuple(pieces[position : position + 2]) == pair:
            result.append(merged)
            position += 2
        else:
            result.append(pieces[position])
            position += 1
    return result
