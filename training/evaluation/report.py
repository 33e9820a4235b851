"""An evaluation as one self-contained HTML page: numbers beside their baselines, and examples with overlays."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from markupsafe import Markup
from PIL import Image

from modeling_qca import QCAVisualQuestionAnsweringPipeline

from ..confidence.diagrams import coverage_diagram, reliability_diagram
from ..data.images import read_image
from ..files.atomic_write import atomic_write
from ..files.html_page import render_page
from ..files.progress import track
from ..files.run_files import ATTENTION_SOURCES, format_value

NO_HOPS = "The model has no hops, so the pictures show the gradient of the answer's score."
PICTURE_SIDE = 320  # pixels of the longer side of an example
# title -> the order in words, the key to sort by, and which rows belong to the section
SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], Callable[[dict[str, Any]], bool]]] = {
    "Most confident": ("all questions, by confidence", lambda row: -row["confidence"], lambda row: True),
    "Least confident": ("all questions, by confidence", lambda row: row["confidence"], lambda row: True),
    "Worst mistakes": ("wrong answers, by confidence", lambda row: -row["confidence"], lambda row: row["score"] == 0),
    "Correct with low confidence": (
        "right answers, by confidence",
        lambda row: row["confidence"],
        lambda row: row["score"] == 1,
    ),
}
STYLE = """\
table { border-collapse: collapse; margin: 0 0 2rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.accuracy td:last-child { font-weight: 600; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }
.right { color: #1a7f37; } .wrong { color: #d1242f; }
.diagrams { display: flex; flex-wrap: wrap; gap: 1rem; margin: 0 0 1rem; }
svg { width: 20rem; height: 20rem; color: inherit; }
"""
BODY = """\
<p class="quiet">{{ rows }} questions about {{ images }} images.
{%- for note in notes %} {{ note }}{% endfor %}</p>
<h2>Accuracy</h2>
<table class="accuracy">
<tr><th></th>{% for name in answerers %}<th>{{ name }}</th>{% endfor %}</tr>
{% for kind, values in accuracy -%}
<tr><td>{{ kind }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if metrics %}<h2>Other metrics</h2>
<table>
{% for name, value in metrics.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
{% endif %}{% if attention %}<h2>Relevance maps</h2>
<p class="quiet">The maps of the last hop against the target regions, beside control maps.</p>
<table>
<tr><th></th>{% for column in columns %}<th>{{ column | words }}</th>{% endfor %}</tr>
{% for measure, values in attention.items() -%}
<tr><td>{{ measure | words }}</td>
{%- for column in columns %}<td>{{ values[column] | number if column in values else "" }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endif %}{% if calibration %}<h2>Confidence</h2>
<p class="quiet">Expected calibration error {{ calibration.ece | number }}
({{ calibration.ece_interval[0] | number }} to {{ calibration.ece_interval[1] | number }}) at temperature
{{ calibration.temperature | number }}. On the line, a probability is the share of right answers.</p>
<div class="diagrams">{{ reliability }}{{ coverage }}</div>
<table>
<tr><th>share of the questions answered, the surest first</th><th>accuracy</th><th>best possible</th></tr>
{% for level in selective["at"] -%}
<tr><td>{{ level.coverage | number }}</td><td>{{ level.accuracy | number }}</td>
<td>{{ level.best_possible | number }}</td></tr>
{% endfor %}</table>
{% endif %}{% for section in sections %}<h2>{{ section.title }}</h2>
<p class="quiet">{{ section.order }}</p>
<div class="examples">
{% for example in section.examples %}<figure>
<img src="data:image/jpeg;base64,{{ example.picture }}" alt="Relevance map for: {{ example.question }}">
<figcaption><b>{{ example.question }}</b><br>
<span class="{{ example.mark }}">{{ example.answer }}</span> ({{ example.confidence }})
{%- if example.score != 1 %}, expected {{ example.expected }}{% endif %}
{%- if example.words %}<br><span class="quiet">without the word: {{ example.words }}</span>{% endif %}</figcaption>
</figure>
{% endfor %}</div>
{% endfor %}
"""


def write_report(
    path: Path,
    results: dict[str, Any],
    details: datasets.Dataset,
    rows: datasets.Dataset,
    pipeline: QCAVisualQuestionAnsweringPipeline,
    examples: int = 6,
    title: str = "Evaluation",
) -> Path:
    """
    Write an evaluation as one self-contained HTML page, whole or not at all.

    The page shows pictures of the data with their questions, without the metadata of their files.

    Args:
        results: `metrics`, `baselines`, `per_question_type`, `attention` and, if known, `data`, as in results.json.
        details: of `evaluate_model`: `question_id`, `answer`, `confidence` and `score` of each row, in order.
        rows: the rows evaluated.
        pipeline: of the model; draws the examples.
        examples: how many of each of the four sections in `SECTIONS`.

    Raises:
        ValueError: `details` are not of `rows`, or an image cannot be read.
    """
    if list(details["question_id"]) != list(rows["question_id"]):
        raise ValueError("`details` and `rows` are not of the same questions in the same order.")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    numbered = [{**detail, "index": index} for index, detail in enumerate(details)]
    chosen = {
        name: sorted(filter(belongs, numbered), key=order)[:examples] for name, (_, order, belongs) in SECTIONS.items()
    }
    wanted = sorted({detail["index"] for details in chosen.values() for detail in details})
    drawn = {index: _example(rows[index], pipeline) for index in track(wanted, "Drawing examples")}
    sections = [
        {"title": name, "order": SECTIONS[name][0], "examples": [_merged(detail, drawn) for detail in details]}
        for name, details in chosen.items()
        if details
    ]
    values = {
        "title": title,
        "rows": len(rows),
        "images": len(set(rows["image_id"])),
        "notes": _notes(results.get("data", {}), pipeline.model.config.num_attention_layers),
        "sections": sections,
        "attention": results["attention"],
        "columns": ATTENTION_SOURCES,
        **_confidence(results),
        **_accuracy(results),
    }
    page = render_page(BODY, STYLE, values, {"words": _words})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _notes(data: dict[str, Any], hops: int) -> list[str]:
    """What limits the accuracy: answers outside the vocabulary, and images that were trained on; and maps of a model
    without hops."""
    notes = [] if hops else [NO_HOPS]
    reach = data.get("vocabulary", {}).get("validation", {"coverage": 1})
    if reach["coverage"] < 1:
        notes.append(
            f"{1 - reach['coverage']:.1%} of the questions have no answer in the vocabulary, so no model with it can "
            f"exceed {format_value(reach['oracle_ceiling'])}."
        )
    if data.get("images_trained_on"):
        notes.append(f"{data['images_trained_on']:,} of the images were trained on.")
    return notes


def _confidence(results: dict[str, Any]) -> dict[str, Any]:
    """Calibration error and selective accuracy, with their diagrams."""
    if "calibration" not in results:
        return {"calibration": None}
    calibration, selective = results["calibration"], results["selective"]
    coverage = coverage_diagram(selective["curve"])
    diagrams = {"reliability": Markup(reliability_diagram(calibration["bins"])), "coverage": Markup(coverage)}
    return {"calibration": calibration, "selective": selective, **diagrams}


def _accuracy(results: dict[str, Any]) -> dict[str, Any]:
    """The accuracy of each baseline and of the model, for all questions and by type; and the other metrics."""
    metrics, kinds = dict(results["metrics"]), sorted(results["per_question_type"])
    answerers = {_words(name): dict(values) for name, values in results["baselines"].items()}
    by_kind = {kind: values["accuracy"] for kind, values in results["per_question_type"].items()}
    answerers["this model"] = {"accuracy": metrics.pop("accuracy")} | by_kind
    return {
        "answerers": list(answerers),
        "accuracy": [
            (label, [format_value(values[kind]) if kind in values else "" for values in answerers.values()])
            for label, kind in [("all", "accuracy"), *((kind, kind) for kind in kinds)]
        ],
        "metrics": {_words(name): format_value(value) for name, value in metrics.items()},
    }


def _example(row: dict[str, Any], pipeline: QCAVisualQuestionAnsweringPipeline) -> dict[str, str]:
    look: Any = pipeline.look(read_image(row), row["question"], top_k=1)
    picture = look.fit(PICTURE_SIDE).overlay(caption=False)
    buffer, clean = io.BytesIO(), Image.new("RGB", picture.size)
    clean.paste(picture)  # the pixels alone: Pillow writes a comment of the original file
    clean.save(buffer, "jpeg", quality=85)
    expected = sorted(row["answers"], key=lambda answer: -answer["count"])
    return {
        "picture": base64.b64encode(buffer.getvalue()).decode(),
        "expected": ", ".join(answer["answer"] for answer in expected[:3]),
        "words": look.important_words(2),
    }


def _merged(detail: dict[str, Any], drawn: dict[int, dict[str, str]]) -> dict[str, Any]:
    mark = {1: "right", 0: "wrong"}.get(detail["score"], "partly")
    return {**detail, "mark": mark, "confidence": f"{detail['confidence']:.0%}", **drawn[detail["index"]]}


def _words(name: str) -> str:
    return name.replace("_", " ")
