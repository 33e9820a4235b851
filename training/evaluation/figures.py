"""Figures of looks and of faithfulness, drawn with matplotlib (`pip install "modeling-qca[figures]"`)."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_qca.explanation_qca import VisualExplanation
from modeling_qca.overlay_qca import strip

from ..files.atomic_write import atomic_write

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('Figures are drawn with matplotlib: pip install "modeling-qca[figures]"') from error


FRAME_MILLISECONDS = 1200
BAR, BEST = "#9db4c0", "#21918c"


def look_figure(look: VisualExplanation) -> Figure:
    """The image, every map side by side with the words it read, and the answers as bars."""
    panels = [look.overlay(index, caption=False) for index in range(len(look.relevance))]
    columns = len(panels) + 2
    height = 3.0 * look.image.height / look.image.width
    figure = Figure(figsize=(3.2 * columns, min(max(height, 2.2), 6.0) + 0.9), layout="constrained")
    figure.suptitle(look.question)
    axes = figure.subplots(1, columns)
    axes[0].imshow(look.image)
    axes[0].set_title("image", fontsize=10)
    for index, (axis, panel) in enumerate(zip(axes[1:-1], panels, strict=True)):
        axis.imshow(panel)
        axis.set_title(_map_name(look, index), fontsize=10)
    for axis in axes[:-1]:
        axis.set_axis_off()
        axis.set_anchor("N")
    _answer_bars(axes[-1], look)
    return figure


def questions_figure(looks: Sequence[VisualExplanation]) -> Figure:
    """Several questions about one image: the last map of each side by side, with the question and its answer."""
    figure = Figure(
        figsize=(3.6 * len(looks), 3.6 * looks[0].image.height / looks[0].image.width + 1), layout="constrained"
    )
    for axis, look in zip(figure.subplots(1, len(looks), squeeze=False)[0], looks, strict=True):
        axis.imshow(look.overlay(caption=False))
        axis.set_title(look.caption, fontsize=10, wrap=True)
        axis.set_axis_off()
    return figure


def hop_strip(look: VisualExplanation) -> Image.Image:
    """The image and every map on it, side by side."""
    return strip([look.image, *(look.overlay(index) for index in range(len(look.relevance)))])


def hop_frames(look: VisualExplanation) -> list[Image.Image]:
    """The image, then every map on it, all of one size: the frames of an animation."""
    frames = [look.overlay(index) for index in range(len(look.relevance))]
    first = Image.new("RGB", frames[0].size, "white")
    first.paste(look.image, (0, 0))
    return [first, *frames]


def faithfulness_figure(results: dict[str, Any]) -> Figure:
    """Deletion and insertion curves of `faithfulness_curves`, the most relevant patches first, with their AUC."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    verbs = {"deletion": "taken away", "insertion": "put back"}
    for axis, (curve, verb) in zip(axes, verbs.items(), strict=True):
        for source, curves in results["curves"].items():
            area = results["auc"][source][curve]["positive"]["probability"]
            axis.plot(
                results["fractions"],
                curves[curve]["positive"]["probability"],
                marker="o",
                markersize=3,
                label=f"{source.replace('_', ' ')} ({area:.3f})",
            )
        axis.set_xlabel(f"share of patches {verb}, most relevant first")
        axis.set_title(f"{curve}, {results['questions']} questions", fontsize=10)
        axis.legend(fontsize=8, title="AUC in brackets", title_fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("probability of the answer")
    return figure


def rows_figure(summary: dict[str, Any]) -> Figure:
    """Of each row of `results.summarize` the accuracy beside that of the majority answer, and how often its maps point
    at what was asked about beside maps for another question and for the center; bars are standard deviations."""
    rows = summary["rows"][::-1]
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(rows)), layout="constrained")
    pointing = [row["attention"].get("pointing", {}) for row in rows]
    answered, *others = figure.subplots(1, 1 + any(pointing), sharey=True, squeeze=False)[0]
    answered.set_yticks(range(len(rows)), [row["name"] for row in rows])
    answered.set_ylim(-0.6, len(rows) - 0.4)
    _spreads(answered, [row["accuracy"]["all"] for row in rows], BEST, "this row")
    answered.axvline(summary["majority"], color=BAR, linestyle=":", label="majority answer")
    for looked in others:
        shuffled = [sources.get("shuffled_question") for sources in pointing]
        _spreads(looked, shuffled, BAR, "its map for another question")
        _spreads(looked, [sources.get("model") for sources in pointing], BEST)
        center = next(sources["center"]["mean"] for sources in pointing if sources)
        looked.axvline(center, color=BAR, linestyle="--", label="map of the center")
    for axis, title in zip((answered, *others), ("accuracy", "pointing"), strict=False):
        axis.set_title(title, fontsize=10)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def explain_to_files(
    checkpoint: str, image: str, questions: list[str], output_dir: Path, method: str = "relevance", top_k: int = 5
) -> list[Path]:
    """
    Show where a checkpoint looks: for question n `n.png` (image, every map, answers), `n-overlay.png` and, with
    several maps, `n-hops.png` and `n-hops.gif`; `n-kept.png` where a token budget dropped patches; `questions.png`
    with several questions; and the numbers in `explanation.json`.

    Args:
        checkpoint: folder or Hub id.
        image: file or URL.
        method: of `explain`.

    Returns:
        The files written.

    Raises:
        ValueError: for a checkpoint or image that cannot be read, an empty question or an unknown method.
    """
    from .checkpoint import load_pipeline

    looks: Any = load_pipeline(checkpoint).look(image, questions, method=method, top_k=top_k)
    output_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for number, look in enumerate(looks, start=1):
        written += [
            write_figure(look_figure(look), output_dir / f"{number}.png"),
            write_picture(look.overlay(), output_dir / f"{number}-overlay.png"),
        ]
        if len(look.relevance) > 1:
            written.append(write_picture(hop_strip(look), output_dir / f"{number}-hops.png"))
            written.append(write_animation(hop_frames(look), output_dir / f"{number}-hops.gif"))
        if look.kept is not None:
            written.append(write_picture(look.kept_patches(), output_dir / f"{number}-kept.png"))
    if len(looks) > 1:
        written.append(write_figure(questions_figure(looks), output_dir / "questions.png"))
    numbers = {"image": image, "method": method, "questions": [_numbers(look) for look in looks]}
    text = json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
    return [*written, _write(text.encode(), output_dir / "explanation.json")]


def write_figure(figure: Figure, path: Path) -> Path:
    """Write `figure` in the format of the suffix of `path`, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150)
    return _write(buffer.getvalue(), path)


def write_picture(picture: Image.Image, path: Path) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, format=path.suffix[1:])
    return _write(buffer.getvalue(), path)


def write_animation(frames: list[Image.Image], path: Path) -> Path:
    """An endless GIF."""
    buffer = io.BytesIO()
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0)
    return _write(buffer.getvalue(), path)


def _write(content: bytes, path: Path) -> Path:
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def _spreads(axis: Any, spreads: list[dict[str, Any] | None], color: str, label: str | None = None) -> None:
    places = [place for place, spread in enumerate(spreads) if spread is not None]
    means, deviations = ([spreads[place][of] for place in places] for of in ("mean", "std"))
    axis.errorbar(means, places, xerr=deviations, fmt="o", markersize=4, color=color, label=label)


def _answer_bars(axis: Any, look: VisualExplanation) -> None:
    names = [answer["answer"] for answer in look.answers][::-1]
    scores = [answer["score"] for answer in look.answers][::-1]
    bars = axis.barh(range(len(names)), scores, color=[BAR] * (len(names) - 1) + [BEST])
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.bar_label(bars, [f"{score:.0%}" for score in scores], padding=3, fontsize=8)
    axis.set_xlim(0, 1.15)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.set_title("answer", fontsize=10)


def _map_name(look: VisualExplanation, index: int) -> str:
    """Which map it is, and the words it read most if the method says so."""
    name = "look" if len(look.relevance) == 1 else f"hop {index + 1}"
    if not look.words:
        return name
    words = look.words[index % len(look.words)]
    most = sorted(words, key=lambda word: -word[1])[:3]
    return f"{name}: " + ", ".join(f"{word} {share:.0%}" for word, share in most)


def _numbers(look: VisualExplanation) -> dict[str, Any]:
    return {
        "question": look.question,
        "answers": look.answers,
        "words": look.words,
        "relevance": look.relevance.tolist(),
        "kept": None if look.kept is None else look.kept.tolist(),
    }
