"""The words of a question that may name an object: all but function words, relations and attributes."""

import re
import unicodedata
from collections.abc import Iterator

from ..object_matching import WORD

_WORD = re.compile(rf"{WORD}(?:['’-]{WORD})*")
# Words that name no object. A phrase ends before them.
_NO_OBJECT = frozenset(
    """
    a an the this that these those there here it its their his her my your our he she they we you i them him us who
    whom whose what which where when why how is are was were be been being am do does did done have has had having can
    could will would shall should may might must not no yes or and but if then than as so too also only very most
    least both either neither any some all each every another other others same one ones of in on at to from by with
    without into onto over under below beneath above between among near beside besides behind before after front along
    across around through against toward towards off out up down about for left right top bottom upper lower middle
    center side sides corner half closest nearest farther further closer next many much number count color colors
    shape kind type sort size bigger smaller larger biggest smallest largest taller shorter longer wider picture image
    photo photograph scene visible shown seen see look looks looking located placed find found separate regions region
    """.split()  # noqa: SIM905
)


def object_words(question: str) -> list[str]:
    """The words that may name an object, in lower case, each once, in the order of the question."""
    return list(dict.fromkeys(word for phrase in _phrases(question) for word in phrase))


def object_phrases(question: str) -> list[str]:
    """Runs of words that may name an object: `["yellow mug", "table"]` of "what is the yellow mug on the table"."""
    return list(dict.fromkeys(" ".join(phrase) for phrase in _phrases(question)))


def _phrases(question: str) -> Iterator[list[str]]:
    phrase: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFC", question).lower()):
        if word not in _NO_OBJECT:
            phrase.append(word)
        elif phrase:
            yield phrase
            phrase = []
    if phrase:
        yield phrase
