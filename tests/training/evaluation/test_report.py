"""The HTML report, parsed."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import datasets
import pytest
from helpers.tiny import ANSWERS, tiny_image, tiny_model, tiny_processor
from PIL import Image

from modeling_qca import QCAVisualQuestionAnsweringPipeline
from modeling_qca.training.data.schema import FEATURES
from modeling_qca.training.evaluation.report import SECTIONS, write_report

QUESTION = "what is <left> & right"
CONFIDENCE = [0.9, 0.1, 0.8, 0.3, 0.7]
SCORE = [1.0, 0.0, 0.0, 1.0, 0.3]
RESULTS = {
    "metrics": {
        "accuracy": 0.46,
        "wups_0.9": {"mean": 0.5, "std": 0.01, "seeds": 3},
    },
    "baselines": {
        "majority": {"accuracy": 0.2},
        "question_only": {"accuracy": 0.31, "side": 0.52},
        "shuffled_questions": {"accuracy": 0.4},
    },
    "per_question_type": {"side": {"accuracy": 0.61}, "exists": {"accuracy": 0.7}},
    "attention": {"pointing": {"model": 0.8, "center": 0.4, "uniform": 0.25, "shuffled_question": 0.3}},
}


class Page(HTMLParser):
    """Headings, table cells, pictures with the text around them, and every address."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.examples: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")
        elif tag == "figcaption":
            self.examples.setdefault(self.headings[-1], []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "figcaption" in self.open:
            self.examples[self.headings[-1]][-1] += data
        elif self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += data


@pytest.fixture
def rows(tmp_path: Path) -> datasets.Dataset:
    table = []
    for number in range(5):
        path = tmp_path / f"{number % 2}.png"
        tiny_image(seed=number % 2, size=(60, 40)).save(path)
        table.append(
            {
                "image": {"path": str(path), "bytes": None},
                "image_id": path.stem,
                "question": f"{QUESTION} {number}",
                "question_id": str(number),
                "question_type": "",
                "answers": [{"answer": "seldom", "count": 1}, {"answer": "often", "count": 3}],
                "relevance": None,
            }
        )
    return datasets.Dataset.from_list(table, features=FEATURES)


@pytest.fixture
def details(rows: datasets.Dataset) -> datasets.Dataset:
    details = rows.select_columns(["question_id", "image_id", "question", "question_type"])
    details = details.add_column("answer", list(ANSWERS.values()))
    return details.add_column("confidence", CONFIDENCE).add_column("score", SCORE)


@pytest.fixture
def page(rows, details, tmp_path) -> Page:
    pipeline = QCAVisualQuestionAnsweringPipeline(
        model=tiny_model(query_tokens="attended"), processor=tiny_processor()
    )
    path = write_report(tmp_path / "out" / "report.html", RESULTS, details, rows, pipeline, examples=3, title="A & B")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    text = path.read_text()
    assert "<h1>A &amp; B</h1>" in text
    assert "5 questions about 2 images" in text
    return Page(text)


def test_tables_show_the_results(page):
    accuracy, metrics, attention = page.tables
    assert accuracy == [
        ["", "majority", "question only", "shuffled questions", "this model"],
        ["all", "0.200", "0.310", "0.400", "0.460"],
        ["exists", "", "", "", "0.700"],
        ["side", "", "0.520", "", "0.610"],
    ]
    assert metrics == [["wups 0.9", "0.500 ± 0.010"]]
    assert attention == [
        ["", "model", "center", "uniform", "shuffled question"],
        ["pointing", "0.800", "0.400", "0.250", "0.300"],
    ]


def test_examples_are_sorted_by_confidence_and_error(page):
    order = {
        name: [int(re.search(rf"{re.escape(QUESTION)} (\d)", text).group(1)) for text in texts]
        for name, texts in page.examples.items()
    }
    assert order == {
        "Most confident": [0, 2, 4],
        "Least confident": [1, 3, 4],
        "Worst mistakes": [2, 1],
        "Correct with low confidence": [3, 0],
    }
    first, second = page.examples["Most confident"][:2]
    assert "red" in first and "90%" in first and "expected" not in first
    assert "blue" in second and "80%" in second and "expected often, seldom" in second
    assert re.search(r"without the word: \w+ [+-]\d+%, \w+ [+-]\d+%", first)


def test_page_is_self_contained(page):
    assert len(page.sources) == 10
    for source in page.sources:
        kind, content = source.split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).width == 320
    assert page.open == []


def test_leaves_out_empty_sections(rows, details, tmp_path):
    results = {**RESULTS, "metrics": {"accuracy": 1.0}, "attention": {}, "per_question_type": {}, "baselines": {}}
    right = details.remove_columns("score").add_column("score", [1.0] * 5)
    pipeline = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
    page = Page(write_report(tmp_path / "report.html", results, right, rows, pipeline, examples=1).read_text())
    assert page.headings == ["Accuracy", "Most confident", "Least confident", "Correct with low confidence"]
    assert page.tables == [[["", "this model"], ["all", "1.000"]]]


def test_leaves_the_cell_of_an_unmeasured_control_empty(rows, details, tmp_path):
    results = {**RESULTS, "attention": {"pointing": {"model": 0.8, "center": 0.4, "uniform": 0.25}}}
    pipeline = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
    page = Page(write_report(tmp_path / "report.html", results, details, rows, pipeline, examples=1).read_text())
    assert page.tables[2][1] == ["pointing", "0.800", "0.400", "0.250", ""]


def test_refuses_details_of_other_rows(rows, details, tmp_path):
    pipeline = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
    with pytest.raises(ValueError, match="same questions in the same order"):
        write_report(tmp_path / "report.html", RESULTS, details.select([1, 0, 2, 3, 4]), rows, pipeline)
    assert not (tmp_path / "report.html").exists()


def test_pictures_have_no_metadata_of_the_original_files(rows, details, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "/home/someone/secret"  # ImageDescription
    for number in range(2):
        tiny_image(seed=number).save(tmp_path / f"{number}.jpg", exif=exif, comment=b"/home/someone/secret")
    images = [{"path": str(tmp_path / f"{number % 2}.jpg"), "bytes": None} for number in range(5)]
    rows = rows.remove_columns("image").add_column("image", images).cast_column("image", datasets.Image(decode=False))
    for hops in (0, 2):
        pipeline = QCAVisualQuestionAnsweringPipeline(
            model=tiny_model(num_attention_layers=hops), processor=tiny_processor()
        )
        page = Page(write_report(tmp_path / "report.html", RESULTS, details, rows, pipeline).read_text())
        for source in page.sources:
            content = base64.b64decode(source.split(",", 1)[1])
            picture = Image.open(io.BytesIO(content))
            assert b"secret" not in content and not picture.getexif() and "comment" not in picture.info


def test_page_says_what_limits_the_accuracy(rows, details, tmp_path):
    reach = {"rows": 5, "coverage": 0.62, "oracle_ceiling": 0.6}
    data = {"vocabulary": {"answers": 5, "validation": reach}, "images_trained_on": 2}
    pipeline = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
    path = write_report(tmp_path / "report.html", RESULTS | {"data": data}, details, rows, pipeline, examples=1)
    text = path.read_text()
    assert "38.0% of the questions have no answer in the vocabulary" in text and "exceed 0.600" in text
    assert "2 of the images were trained on" in text


def test_report_of_a_model_without_hops_shows_the_gradient_and_says_so(rows, details, tmp_path):
    pipeline = QCAVisualQuestionAnsweringPipeline(model=tiny_model(num_attention_layers=0), processor=tiny_processor())
    text = write_report(tmp_path / "report.html", RESULTS, details, rows, pipeline, examples=1).read_text()
    assert "The model has no hops, so the pictures show the gradient of the answer&#39;s score." in text
    assert text.count("data:image/jpeg") == len(SECTIONS)
