"""The learned vocabulary against recounting every pair before every merge."""

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.tokenizer.tokenizer import SPECIAL, learn_tokenizer
from pretrain.tokenizer.wordpiece import learn_vocabulary


def obvious(word_counts, size, special):
    pieces = {word: [word[0], *("##" + letter for letter in word[1:])] for word in word_counts}
    alphabet = set("".join(word_counts))
    vocabulary = [*special, *sorted(alphabet | {"##" + letter for letter in alphabet})]
    while len(vocabulary) < size:
        pairs = Counter()
        for word, split in pieces.items():
            for pair in itertools.pairwise(split):
                pairs[pair] += word_counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merged = best[0] + best[1][2:]
        if merged not in vocabulary:
            vocabulary.append(merged)
        for word, split in pieces.items():
            new, i = [], 0
            while i < len(split):
                if tuple(split[i : i + 2]) == best:
                    new.append(merged)
                    i += 2
                else:
                    new.append(split[i])
                    i += 1
            pieces[word] = new
    return vocabulary


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 6), max_size=12),
    st.integers(5, 30),
)
def test_equals_recounting_before_every_merge(words, size):
    assert learn_vocabulary(words, size, ["[UNK]"]) == obvious(words, size, ["[UNK]"])


def test_every_word_of_the_texts_can_be_written():
    tokenizer = learn_tokenizer(["Cats and dogs, dogs & CATS!", "catalogue"], 30)
    text = "cats dogs catalogue dog logs ,"
    assert "[UNK]" not in tokenizer.backend.encode(text, add_special_tokens=False).tokens
    assert tokenizer.backend.encode("zebra", add_special_tokens=False).tokens == ["[UNK]"]
    assert tokenizer.backend.decode(tokenizer.encode([text], 50)[0][1:-1]) == "cats dogs catalogue dog logs,"
    assert [tokenizer.backend.id_to_token(n) for n in range(5)] == list(SPECIAL)


def test_everyday_words_are_whole_and_any_word_can_be_spelled():
    plain, more = (learn_tokenizer(["a red star", "a blue ring"], size) for size in (30, 8000))
    assert more.encode(["yes, what is it?"], 20) == more.encode(["yes , what is it ?"], 20)
    assert [more.backend.id_to_token(n) for n in more.encode(["Which question? Yes"], 20)[0]] == [
        *("[CLS]", "which", "question", "?", "yes", "[SEP]")
    ]
    assert more.special["[UNK]"] not in more.encode(["zebra 42"], 20)[0]
    assert plain.special["[UNK]"] in plain.encode(["zebra 42"], 20)[0]
    assert [more.backend.id_to_token(n) for n in range(len(plain))] == [
        plain.backend.id_to_token(n) for n in range(len(plain))
    ]
