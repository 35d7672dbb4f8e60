"""Deterministic training of a WordPiece vocabulary by merging frequent pairs.

The trainers of the tokenizers library break ties by the order of a randomly seeded hash table, so two runs on the same
captions would get different vocabularies.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

INSIDE = "##"  # prefix of tokens that continue a word


def learn_vocabulary(word_counts: dict[str, int], size: int, special: Iterable[str]) -> list[str]:
    """Learns a vocabulary of at most `size` tokens: special tokens, letters, and merged tokens.

    All letters are included, as the start and as the continuation of a word, even if they exceed `size`, so that any
    word of known letters can be encoded. The most frequent pair is merged first (ties in alphabetical order), down to
    pairs that occur twice.

    Args:
        word_counts: word -> number of occurrences.
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
