"""WUPS as an `evaluate` metric: the accuracy of DAQUAR with partial credit for answers of similar meaning."""

import io
import os
import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from pathlib import Path

import datasets
import evaluate
import nltk
from nltk.corpus import wordnet
from nltk.corpus.reader import WordNetCorpusReader

_DESCRIPTION = """\
WUPS (Malinowski and Fritz, NIPS 2014): set accuracy in which an answer that differs from the reference scores the
Wu-Palmer similarity of the two words in WordNet, times 0.1 where that similarity is below the threshold.
"""
_CITATION = """\
@inproceedings{malinowski2014multiworld,
  title={A Multi-World Approach to Question Answering about Real-World Scenes based on Uncertain Input},
  author={Malinowski, Mateusz and Fritz, Mario},
  booktitle={NIPS},
  year={2014}
}
"""
_INPUTS = """\
Args:
    predictions: per question the set of predicted answers, a list of strings.
    references: per question the set of right answers, a list of strings.
Returns:
    accuracy (the sets are equal), wups_0.9 and wups_0.0, each in [0, 1].
"""
_SYSTEM_FOLDER = "/usr/share/wordnet"
_NO_WORDNET = """\
WUPS needs the WordNet database, which is not installed. Install it once (10 MB) with one of
    python -c "import nltk; nltk.download('wordnet')"
    apt-get install wordnet-base
or set NLTK_DATA to a directory that holds corpora/wordnet, or WNSEARCHDIR to one that holds data.noun."""
_PENALTY = 0.1


class _SystemWordNet(WordNetCorpusReader):
    """The database as Debian installs it. It lacks `lexnames` and `index.sense`, which similarity does not need."""

    def open(self, file: str) -> io.TextIOBase:
        if file == "lexnames":
            return io.StringIO("".join(f"{number} {number} 1\n" for number in range(45)))
        return super().open(file)

    def map_wn(self, version: str = "wordnet") -> None:
        """Skip the mapping to other languages, which needs `index.sense`."""


@cache
def load_wordnet() -> WordNetCorpusReader:
    """The database of nltk, or else the system's.

    Raises:
        ImportError: WordNet is not installed. The message has the install commands.
    """
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        folder = os.environ.get("WNSEARCHDIR", _SYSTEM_FOLDER)
        if not Path(folder, "data.noun").exists():
            raise ImportError(_NO_WORDNET) from error
        nltk.data.path.append(folder)  # nltk opens only files below these folders
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The multilingual functions")
            return _SystemWordNet(folder, None)
    return wordnet


@lru_cache(maxsize=200_000)
def similarity(first: str, second: str) -> float:
    """Wu-Palmer similarity in [0, 1] of two answers: the maximum over their noun senses, and 1 for equal answers.

    The words of an answer are joined by `_`, as in WordNet. A word that WordNet does not have scores 0.

    Raises:
        ImportError: WordNet is not installed. The message has the install commands.
    """
    if first == second:
        return 1.0
    words = (answer.replace(" ", "_") for answer in (first, second))
    senses = [load_wordnet().synsets(word, pos=WordNetCorpusReader.NOUN) for word in words]
    return max((one.wup_similarity(other) or 0.0 for one in senses[0] for other in senses[1]), default=0.0)


def set_score(predicted: Sequence[str], right: Sequence[str], threshold: float) -> float:
    """WUPS in [0, 1] of one predicted set of answers at `threshold` (Malinowski and Fritz, NIPS 2014).

    Each direction is the product, over one set, of each member's best similarity to the other set. The score is the
    smaller direction.
    """

    def membership(answer: str, others: Sequence[str]) -> float:
        best = max((similarity(answer, other) for other in others), default=0.0)
        return best if best >= threshold else _PENALTY * best

    if not predicted or not right:
        return float(not predicted and not right)
    return min(
        prod(membership(answer, right) for answer in predicted),
        prod(membership(answer, predicted) for answer in right),
    )


class WUPS(evaluate.Metric):
    """WUPS at thresholds 0.9 and 0.0 beside set accuracy; `set_score` is the rule for one question."""

    def _info(self) -> evaluate.MetricInfo:
        answers = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": answers, "references": answers}),
            reference_urls=["https://arxiv.org/abs/1410.0210"],
        )

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        load_wordnet()
        pairs = [([*map(_form, a)], [*map(_form, b)]) for a, b in zip(predictions, references, strict=True)]
        scores = {f"wups_{level}": [set_score(*pair, level) for pair in pairs] for level in (0.9, 0.0)}
        scores["accuracy"] = [float(set(predicted) == set(right)) for predicted, right in pairs]
        return {name: sum(values) / len(values) for name, values in scores.items()}


def _form(answer: str) -> str:
    """DAQUAR joins the words of an answer by `_`, a vocabulary of normalized answers by a space."""
    return answer.strip().lower().replace("_", " ")
