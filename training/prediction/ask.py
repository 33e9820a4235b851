"""`qca ask`: answers of a checkpoint to questions about one image."""

from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from ..confidence.abstention import Abstention, read_abstention
from ..evaluation.calibrate import embed_questions, read_familiarity
from ..evaluation.checkpoint import load_pipeline
from ..evaluation.evaluation import read_scoring

NO_HOPS = "the model has no hops"


@dataclass(frozen=True)
class AskedQuestion:
    """
    Args:
        answers: `{"answer", "score"}`, best first.
        overlay: the file of its overlay.
        reason: why the best answer does not count; None if it does.
        unfamiliar: how far the question is from those trained on; None if it is like them, or if that is not known.
        words: with an overlay, the most important words and what the answer loses without each.
        map_name: what the overlay shows.
    """

    question: str
    answers: list[dict[str, Any]]
    overlay: Path | None = None
    reason: str | None = None
    unfamiliar: str | None = None
    words: str | None = None
    map_name: str = "relevance map"

    @property
    def abstained(self) -> bool:
        return self.reason is not None


def answer_questions(
    checkpoint: str,
    image: str,
    questions: list[str],
    top_k: int,
    overlay: Path | None,
    threshold: float | None = None,
    coverage: float | None = None,
) -> list[AskedQuestion]:
    """
    Args:
        checkpoint: folder or Hub id.
        image: file or URL; encoded once.
        overlay: picture with the relevance map; for several questions, `out.png` becomes `out-1.png`, `out-2.png`, ...
        threshold, coverage: of `abstention.read_abstention`.

    Raises:
        ValueError: a checkpoint or image that cannot be read, an empty or too long question, or see `read_abstention`.
    """
    *_, abstain_answer = read_scoring(checkpoint, {})
    abstention = read_abstention(checkpoint, threshold, coverage, abstain_answer)
    pipeline = load_pipeline(checkpoint)
    pictures: list[Path | None] = [None] * len(questions)
    words: list[str | None] = [None] * len(questions)
    if overlay is None:
        answers = pipeline(image, questions, top_k=top_k)
    else:
        explanations: Any = pipeline.look(image, questions, top_k=top_k)
        answers = [explanation.answers for explanation in explanations]
        for number, explanation in enumerate(explanations, start=1):
            path = overlay if len(explanations) == 1 else overlay.with_stem(f"{overlay.stem}-{number}")
            explanation.overlay().save(path)
            pictures[number - 1], words[number - 1] = path, explanation.important_words(3)
    reasons = [_reason(abstention, found[0]) for found in answers]
    unfamiliar = _unfamiliar(checkpoint, pipeline, questions)
    map_name = "relevance map" if pipeline.model.config.num_attention_layers else f"gradient map ({NO_HOPS})"
    parts: Any = zip(questions, answers, pictures, reasons, unfamiliar, words, repeat(map_name))
    return [AskedQuestion(*part) for part in parts]


def _reason(abstention: Abstention, best: dict[str, Any]) -> str | None:
    if not abstention(best["answer"], best["score"]):
        return None
    if best["answer"] == abstention.abstain_answer:
        return f"the model says {best['answer']!r}"
    return f"the probability {best['score']:.3f} of the best answer is below {abstention.threshold:.3f}"


def _unfamiliar(checkpoint: str, pipeline: Any, questions: list[str]) -> list[str | None]:
    familiarity = read_familiarity(checkpoint)
    if familiarity is None:
        return [None] * len(questions)
    distances = familiarity.distances(embed_questions(pipeline.model, pipeline.processor, questions))
    return [
        f"distance {distance:.3f}, usual up to {familiarity.threshold:.3f}"
        if distance > familiarity.threshold
        else None
        for distance in distances
    ]
