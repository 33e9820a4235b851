"""Labels of objects in the words of a question: case, plural and labels of several words."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

# Accents and vowel signs are no letters for `re`. From 0x1F000 on, the only marks are variation selectors.
_COMBINING = "".join(sign for sign in map(chr, range(0x1F000)) if unicodedata.category(sign).startswith("M"))
WORD = rf"[^\W_]+(?:[{_COMBINING}][^\W_]*)*"
_WORD = re.compile(WORD)
PHOTO = frozenset({"image", "photo", "photograph", "picture"})
_WITHIN = re.compile(  # "to the left of the picture" is beside a picture; "at the left of the picture" is in the photo
    r"\b((half|part|center|middle|corner|side|edge|top|bottom|(top|bottom) (left|right)|(on|at) the (left|right))"
    r" of|in) (the|this)$"
)


class Mention(NamedTuple):
    """Words of a question that name objects, and the labels they name."""

    words: str
    labels: frozenset[str]


class LabelMatcher:
    """Finds labels in questions. The longest label wins: "dining table" is not also a "table".

    A label and its English singular and plural are the same. Case, `_` and `-` do not matter. The words "in the
    picture" and "half of the picture" (image, photo) mean the photo itself, and name no label `picture`. "Can" at the
    start of a question names no label `can`.

    Args:
        labels: all labels of the data set, also those that a picture at hand does not have.
        words: the words that name a label instead of the label itself: `{"couch": ["couch", "sofa"]}`. An empty list
            leaves the label out.

    Raises:
        ValueError: `words` names an unknown label, or the library `inflect` is missing.
    """

    def __init__(self, labels: Iterable[str], words: Mapping[str, Sequence[str]] | None = None) -> None:
        labels = set(labels) - {""}
        if unknown := (words or {}).keys() - labels:
            known = ", ".join(sorted(labels)[:20])
            raise ValueError(f"label words: no object has the label {min(unknown)!r}; the labels are {known}")
        self._labels: dict[tuple[str, ...], set[str]] = {}
        for label in labels:
            for name in (words or {}).get(label, [label]):
                for form in _forms(name):
                    self._labels.setdefault(form, set()).add(label)
        self._longest = max(map(len, self._labels), default=0)

    def labels_of(self, name: str) -> frozenset[str]:
        """The labels that `name` means, in whatever case and number."""
        return frozenset(label for form in _forms(name) for label in self._labels.get(form, ()))

    def mentions(self, question: str) -> list[Mention]:
        """What the question names, in the order of its first mentions."""
        found: list[Mention] = []
        for mention in self._all_mentions(question):
            if not any(mention.labels & earlier.labels for earlier in found):
                found.append(mention)
        return found

    def _all_mentions(self, question: str) -> Iterator[Mention]:
        words = split_words(question)
        start = 0
        while start < len(words):
            for length in range(min(self._longest, len(words) - start), 0, -1):
                named = tuple(words[start : start + length])
                labels = self._labels.get(named)
                if labels and not (length == 1 and _names_nothing(words, start)):
                    yield Mention(" ".join(words[start : start + length]), frozenset(labels))
                    start += length
                    break
            else:
                start += 1


def _names_nothing(words: Sequence[str], place: int) -> bool:
    """Whether a word means the photo itself, or asks: "can you see a lamp"."""
    if words[place] in PHOTO:
        return _WITHIN.search(" ".join(words[:place])) is not None
    return place == 0 and words[place] == "can"


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation. Composed and decomposed letters are the same."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


@cache
def _forms(name: str) -> tuple[tuple[str, ...], ...]:
    """The words of a name, of its plural and of its singular."""
    plain = " ".join(split_words(name))
    if not plain:
        return ()
    engine = _inflect()
    variants = {plain, engine.plural_noun(plain), engine.singular_noun(plain) or plain}
    return tuple(tuple(variant.lower().split()) for variant in variants)


@cache
def _inflect() -> Any:
    try:
        import inflect
    except ImportError as error:
        raise ValueError(
            "matching labels with the words of questions needs inflect: pip install 'modeling-qca[maps]'"
        ) from error
    return inflect.engine()
