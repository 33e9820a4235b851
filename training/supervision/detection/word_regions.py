"""Where the objects are that questions name, learned from the questions, and from marks if there are any.

A picture that a question says to show a chair has patches of a chair. A linear classifier of patches learns from many
pictures which ones (multiple instances, pooled by log-sum-exp: Pinheiro and Collobert 2015). Marks teach it directly.

I pictures, N patches, E vision width, C components, K labels.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits

from ...data.answers import normalize_answer
from ..object_matching import LabelMatcher, split_words

COMPONENTS = 256  # principal components of the patch features
STEPS, LEARNING_RATE = 150, 0.02
WEIGHT_PENALTY = 0.1
SHARPNESS = 2.0  # of the pooling over patches, and of the regions
OTHER_MARKS = 0.3  # weight of another label's mark as an example of patches without this label
DENIALS = ("no", "0")  # normalized: "none" and "zero" are "0"
_DENIABLE = re.compile(r"^((is|are|was|were) there|how many|does|do|can)\b", re.IGNORECASE)

Marks = Mapping[tuple[int, int], NDArray[np.float32]]
"""(picture, label) -> [N]: the share of each patch that the marked object covers. All of the label is marked."""


def labels_shown(question: str, answer: str, matcher: LabelMatcher) -> set[str]:
    """The labels that a question and its answer say to be in the picture: those they name.

    "No" to "is there a bed" or "is a bed visible" says nothing, nor does "0" to "how many beds are there". "No" to "is
    the bed left of the chair" says that both are there. Other languages than English have no such denials.
    """
    named = matcher.mentions(question)
    if normalize_answer(answer) in DENIALS:
        said = "" if _DENIABLE.match(question) else f" {' '.join(split_words(question))} "
        named = [mention for mention in named if f" the {mention.words} " in said]
    return set(matcher.labels_of(answer)).union(*(mention.labels for mention in named))


def learn_word_regions(
    patches: torch.Tensor, shown: NDArray[np.bool_], marks: Marks | None = None
) -> NDArray[np.float32]:
    """How much each patch belongs to each label, as a distribution over the patches of a picture: [I, K, N].

    Args:
        patches: [I, N, C], see `principal_components`.
        shown: [I, K], whether the questions say that a picture shows a label; see `labels_shown`.
        marks: objects that somebody marked.
    """
    target = torch.from_numpy(shown).float()
    pictures, wanted, weights = _examples(marks or {}, patches.shape[1], shown.shape[1])
    weight = torch.zeros(patches.shape[-1], shown.shape[1], requires_grad=True)
    bias = torch.zeros(shown.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    for _ in range(STEPS):
        scores = patches @ weight + bias  # [I, N, K]
        pooled = (torch.logsumexp(SHARPNESS * scores, dim=1) - np.log(patches.shape[1])) / SHARPNESS
        loss = binary_cross_entropy_with_logits(pooled, target)
        loss = loss + WEIGHT_PENALTY * weight.square().sum() / weight.shape[1]
        if len(pictures):
            marked = binary_cross_entropy_with_logits(scores[pictures], wanted, reduction="none")
            loss = loss + (weights * marked).sum() / weight.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return (SHARPNESS * (patches @ weight + bias)).softmax(dim=1).transpose(1, 2).numpy()


def principal_components(features: torch.Tensor, count: int = COMPONENTS) -> torch.Tensor:
    """[I, N, count]: the first principal components of [I, N, E] features, standardized and half whitened.

    A component is divided by the square root of its standard deviation, so that small ones count more than in the
    features, but not as much as large ones.
    """
    flat = features.flatten(0, 1)
    flat = (flat - flat.mean(dim=0)) / flat.std(dim=0).clamp(min=1e-6)
    variances, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
    variances, axes = variances.flip(0)[:count], axes.flip(1)[:, :count]
    reduced = flat @ axes / variances.clamp(min=1e-6) ** 0.25
    return (reduced / reduced.std()).unflatten(0, features.shape[:2])


def _examples(marks: Marks, patches: int, labels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The marked pictures [M], the share of each patch that a label covers, and the weight of that example [M, N, K].

    For each label, patches with it weigh 1 together, and so do patches without it. A label that is not marked in a
    picture has patches without it where others are marked.
    """
    rows = {picture: row for row, picture in enumerate(sorted({picture for picture, _ in marks}))}
    wanted = torch.zeros(len(rows), patches, labels)
    others = torch.zeros(len(rows), patches)
    known = torch.zeros(len(rows), labels, dtype=torch.bool)
    for (picture, label), covered in marks.items():
        share = torch.from_numpy(np.asarray(covered, dtype=np.float32))
        wanted[rows[picture], :, label] = share
        known[rows[picture], label] = True
        others[rows[picture]] = torch.maximum(others[rows[picture]], share)
    weights = torch.where(known[:, None], torch.ones(()), OTHER_MARKS * others[..., None])
    inside = (weights * wanted).sum(dim=(0, 1)).clamp(min=1)
    outside = (weights * (1 - wanted)).sum(dim=(0, 1)).clamp(min=1)
    return torch.tensor(list(rows), dtype=torch.long), wanted, weights * (wanted / inside + (1 - wanted) / outside)


def shown_labels(
    questions: Iterable[tuple[int, str, str]], pictures: int, labels: list[str], matcher: LabelMatcher
) -> NDArray[np.bool_]:
    """[I, K] from (picture, question, answer): the argument `shown` of `learn_word_regions`."""
    shown = np.zeros((pictures, len(labels)), dtype=bool)
    for picture, question, answer in questions:
        for label in labels_shown(question, answer, matcher):
            shown[picture, labels.index(label)] = True
    return shown
