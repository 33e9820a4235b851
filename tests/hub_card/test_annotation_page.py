"""The annotation page: its actions in Python, and a walk in headless Chromium from a drawing to a better model."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import write_csv
from helpers.tiny import save_tiny_model
from PIL import Image, ImageDraw

pytest.importorskip("gradio", reason="the `app` extra is not installed")
pytest.importorskip("inflect", reason="the `maps` extra is not installed")

from modeling_qca.hub_card.annotation import annotation_folder, annotation_page
from modeling_qca.hub_card.annotation_page import BOX, STROKES, Session, drawn_region, gr
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.fitting.continued_recipe import held_out_rows, write_continued_recipe
from modeling_qca.training.fitting.recipe import load_recipe, make_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.marked_objects import MarkedObject, write_objects
from modeling_qca.training.supervision.regions import Box, Mask

QUESTIONS = ("what color is the cube", "is there a cube above the ball", "how many ring")
COLORS = ("red", "blue", "green")
CUT = {"validation_ratio": 0.34, "group_by": "image_id"}


def save_pictures(folder: Path, count: int = 6) -> Path:
    """Colored pictures of 64 x 64 with a square in the upper left quarter, and three questions about each."""
    lines = []
    for number in range(count):
        image = Image.new("RGB", (64, 64), (40, 200, 120 + 10 * number))
        ImageDraw.Draw(image).rectangle((8, 8, 24, 24), fill=COLORS[number % 3])
        (folder / "images").mkdir(parents=True, exist_ok=True)
        image.save(folder / "images" / f"picture{number}.png")
        answers = (COLORS[number % 3], "yes", "no")
        lines += [f"picture{number},{question},{answer}" for question, answer in zip(QUESTIONS, answers, strict=True)]
    write_csv(folder / "train.csv", "image_id,question,answer", *lines)
    return folder


@pytest.fixture
def data(tmp_path):
    return save_pictures(tmp_path / "data")


@pytest.fixture
def page(data, tmp_path):
    page = annotation_page(str(data), {}, None, "eva", tmp_path / "annotated")
    page.build()
    return page


def drawing(left, top, right, bottom, size=(64, 64)):
    """The editor's value after a stroke from corner to corner."""
    layer = Image.new("RGBA", size)
    ImageDraw.Draw(layer).line((left, top, right, bottom), fill="red")
    return {"background": None, "layers": [layer], "composite": None}


def value(page, shown, name):
    return shown[page.shown[name]]


def test_saved_drawing_becomes_an_object_and_the_next_question_is_shown(page):
    shown = page.show_next(Session())
    assert value(page, shown, "question") == f"## {QUESTIONS[0]}"
    assert value(page, shown, "answer") == "red"
    shown = page.save(value(page, shown, "session"), drawing(8, 8, 23, 23), BOX, "cube", "blue", [])
    assert value(page, shown, "question") == f"## {QUESTIONS[1]}"
    assert value(page, shown, "counter").startswith("**2** of 18 questions have maps. 1 are saved, 1 objects")
    [marked] = value(page, shown, "session").stored
    assert marked == MarkedObject("picture0", "cube", Box(8, 8, 24, 24), "eva")
    assert load_rows(str(page.annotations.folder))["answers"][0] == [{"answer": "blue", "count": 1}]


def test_several_objects_are_kept_until_they_are_saved(page):
    shown = page.show_next(Session())
    page.save(value(page, shown, "session"), None, BOX, "", "red", [])
    shown = page.show_next(Session())
    shown = page.add(value(page, shown, "session"), drawing(8, 8, 23, 23), BOX, "cube", [])
    assert page.annotations.objects("picture0") == []
    shown = page.save(value(page, shown, "session"), drawing(0, 0, 60, 60), STROKES, "ball", "yes", [0])
    assert [item.label for item in page.annotations.objects("picture0")] == ["cube", "ball"]


def test_unticked_objects_are_removed_whether_stored_or_not(page):
    session = value(page, page.show_next(Session()), "session")
    page.save(session, drawing(8, 8, 23, 23), BOX, "cube", "red", [])
    session = value(page, page.show_next(Session()), "session")
    session = value(page, page.add(session, drawing(0, 0, 9, 9), BOX, "ball", [0]), "session")
    session = value(page, page.add(session, drawing(0, 0, 5, 5), BOX, "ring", [0, 1]), "session")
    page.save(session, None, BOX, "", "yes", [1])
    assert [item.label for item in page.annotations.objects("picture0")] == ["ball"]


def test_another_object_leaves_unticked_objects_unticked(page):
    session = value(page, page.show_next(Session()), "session")
    page.save(session, drawing(8, 8, 23, 23), BOX, "cube", "red", [])
    shown, ticked = page.show_next(Session()), []  # the cube is unticked
    for label in ("ball", "ring"):
        shown = page.add(value(page, shown, "session"), drawing(0, 0, 9, 9), BOX, label, ticked)
        ticked = value(page, shown, "kept").value
    page.save(value(page, shown, "session"), None, BOX, "", "yes", ticked)
    assert [item.label for item in page.annotations.objects("picture0")] == ["ball", "ring"]


def test_another_object_is_added_with_the_ticks_of_the_page(data, tmp_path):
    page = annotation_page(str(data), {}, None, "eva", tmp_path / "annotated")
    [add] = [event for event in page.build().fns.values() if event.name == "add"]
    names = {component: name for name, component in page.shown.items()}
    assert [names[component] for component in add.inputs] == ["session", "editor", "shape", "name", "kept"]


def test_back_shows_the_question_before_with_its_saved_answer(page):
    session = value(page, page.show_next(Session()), "session")
    session = value(page, page.save(session, None, BOX, "", "zebra", []), "session")
    shown = page.go_back(session)
    assert value(page, shown, "question") == f"## {QUESTIONS[0]}"
    assert value(page, shown, "answer") == "zebra"
    shown = page.save(value(page, shown, "session"), None, BOX, "", "red", [])
    assert value(page, shown, "question") == f"## {QUESTIONS[1]}"
    assert load_rows(str(page.annotations.folder))["answers"][0] == [{"answer": "red", "count": 1}]


@pytest.mark.parametrize(
    ("editor", "name", "answer", "message"),
    [
        (drawing(8, 8, 23, 23), " ", "red", "Name what you drew"),
        (None, "cube", "red", "Nothing is drawn for 'cube'"),
        (None, "", " ", "Not saved: the right answer is empty"),
    ],
)
def test_incomplete_work_is_refused_and_nothing_is_written(page, editor, name, answer, message):
    session = value(page, page.show_next(Session()), "session")
    with pytest.raises(gr.Error, match=message):
        page.save(session, editor, BOX, name, answer, [])
    assert page.annotations.objects("picture0") == []
    assert value(page, page.show_next(Session()), "session").row == 0


def test_end_is_said_when_all_questions_are_saved(page):
    session = value(page, page.show_next(Session()), "session")
    while session.row is not None:
        shown = page.save(session, None, BOX, "", "yes", [])
        session = value(page, shown, "session")
    assert value(page, shown, "question") == "## All saved"
    assert "18 are saved" in value(page, shown, "counter")
    with pytest.raises(gr.Error, match="All questions are saved"):
        page.skip(session)


def test_drawing_is_scaled_to_the_picture():
    editor = drawing(10, 20, 29, 39, size=(50, 100))
    assert drawn_region(editor, BOX, (100, 200)) == Box(20, 40, 60, 80)
    assert drawn_region({"layers": []}, BOX, (9, 9)) is None
    assert drawn_region(drawing(-5, -5, -1, -1), BOX, (9, 9)) is None


def test_outline_is_filled():
    layer = Image.new("RGBA", (10, 10))
    ImageDraw.Draw(layer).rectangle((2, 2, 7, 6), outline="red")
    region = drawn_region({"layers": [layer]}, STROKES, (20, 20))
    expected = np.zeros((10, 10), dtype=bool)
    expected[2:7, 2:8] = True
    assert isinstance(region, Mask) and (region.array == expected).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `data`, its pictures elsewhere, and a `run` on them that keeps the answers of its model."""
    folder = tmp_path_factory.mktemp("trained")
    save_pictures(folder / "data")
    (folder / "data" / "images").rename(folder / "photos")
    train_run(folder / "data", folder / "run", vocabulary=None, data_options={"images": str(folder / "photos")})
    return folder


def test_least_sure_questions_come_first_and_held_out_rows_last(trained, tmp_path):
    data, run, images = str(trained / "data"), str(trained / "run"), str(trained / "photos")
    order = annotation_page(data, {}, run, "eva", tmp_path).order
    ask = load_pipeline(run)
    rows = load_rows(data, images=images)
    sure = [ask(row["image"], row["question"], top_k=1)[0]["score"] for row in rows]
    held_out = load_rows(data, images=images, split="validation", **CUT)
    last = [row["question_id"] in set(held_out["question_id"]) for row in rows]
    assert 0 < sum(last) < 9
    assert [last[row] for row in order] == sorted(last)
    for one, other in itertools.pairwise(order):
        assert last[other] > last[one] or sure[one] <= sure[other] + 1e-5
    (tmp_path / "confidence.json").write_text("{}")  # is made anew
    assert annotation_page(data, {}, run, "tom", tmp_path).order == order


def test_recipe_of_the_run_goes_on_with_its_split_and_all_answers(trained, tmp_path):
    annotation_page(str(trained / "data"), {}, str(trained / "run"), "eva", tmp_path)
    recipe, begun = load_recipe(tmp_path / "train.yaml"), train_recipe(trained / "data", trained / "run")
    assert (recipe.data, recipe.data_options, recipe.model) == (str(tmp_path), {}, str(trained / "run"))
    assert recipe.output_dir == trained / "run_round2"
    assert recipe.vocabulary == {} and recipe.keep_answers and recipe.attention_supervision == "every_hop"
    assert (recipe.validation_ratio, recipe.group_by) == (begun.validation_ratio, begun.group_by)
    assert recipe.arguments["learning_rate"] == begun.arguments["learning_rate"]
    rows = load_rows(str(tmp_path))  # read with the images of the run, from the table alone
    assert rows["image_id"][:] == load_rows(str(trained / "data"), images=str(trained / "photos"))["image_id"][:]


def test_run_cut_by_a_column_of_its_table_goes_on_with_its_split(tmp_path):
    data = save_pictures(tmp_path / "data")
    header, *lines = (data / "train.csv").read_text().splitlines()
    write_csv(data / "train.csv", f"{header},sequence", *(f"{line},s{int(line[7]) // 2}" for line in lines))
    run = train_run(data, tmp_path / "run", group_by="sequence")
    page = annotation_page(str(data), {}, str(run), "eva", tmp_path / "marked")
    held_out = load_rows(str(data), split="validation", validation_ratio=0.34, group_by="sequence")["question_id"][:]
    assert {page.annotations.questions[row]["question_id"] for row in page.order[-len(held_out) :]} == set(held_out)
    recipe = load_recipe(tmp_path / "marked" / "train.yaml")
    train(recipe)
    assert recipe.group_by == "sequence"
    assert annotation_page(str(data), {}, str(recipe.output_dir), "eva", tmp_path / "marked").order  # the next round


def test_new_answers_about_other_pictures_leave_the_answers_of_the_run(trained, tmp_path):
    run = str(trained / "run")
    data = save_pictures(tmp_path / "wrong")
    write_csv(data / "train.csv", "image_id,question,answer", *(f"picture{n},how many ring,purple" for n in range(3)))
    annotation_page(str(data), {}, run, "eva", tmp_path / "marked")
    recipe = load_recipe(tmp_path / "marked" / "train.yaml", {"output_dir": str(tmp_path / "next")})
    train(recipe)
    known = list(load_pipeline(run).model.config.id2label.values())
    assert list(load_pipeline(str(tmp_path / "next")).model.config.id2label.values()) == [*known, "purple"]


def test_run_without_hops_shows_a_gradient_map_and_goes_on_with_hops(trained, tmp_path, caplog):
    data, run, options = trained / "data", tmp_path / "run", {"images": str(trained / "photos")}
    train_run(data, run, data_options=options, num_attention_layers=0)
    page = annotation_page(str(data), {}, str(run), "eva", tmp_path)
    assert f"{run} has no hops, so marks cannot train it. {tmp_path / 'train.yaml'} gives it two hops" in caplog.text
    page.build()
    shown = page.show_next(Session())
    assert value(page, shown, "explanation").method == "gradient" and value(page, shown, "overlay") is not None
    question = page.annotations.questions[value(page, shown, "session").row]["question"].split()[-1]
    page.save(value(page, shown, "session"), drawing(8, 8, 23, 23), BOX, question, "red", [])
    recipe = load_recipe(tmp_path / "train.yaml", {"output_dir": str(tmp_path / "next"), "max_steps": "1"})
    train(recipe)
    assert recipe.attention_supervision == "every_hop"
    assert load_pipeline(str(tmp_path / "next")).model.config.num_attention_layers == 2
    write_continued_recipe(tmp_path / "other.yaml", str(run), tmp_path / "marked", "elsewhere", {})
    other = load_recipe(tmp_path / "other.yaml")
    assert (other.config["num_attention_layers"], other.attention_supervision) == (0, "none")
    assert "so {} trains on the corrected answers and not on the marks".format(tmp_path / "other.yaml") in caplog.text


def test_next_round_goes_on_from_the_last(trained, tmp_path):
    file, (run, second) = tmp_path / "train.yaml", (tmp_path / name for name in ("run", "run_round2"))
    for folder in (run, second):
        shutil.copytree(trained / "run", folder)
    for name in ("run.json", "_recipe.json"):  # the second run was trained on the annotations
        written = (second / name).read_text()
        (second / name).write_text(written.replace(str(trained / "data"), str(tmp_path / "marked")))
    rows = load_rows(str(trained / "data"), images=str(trained / "photos"))
    kept = set(load_rows(str(trained / "data"), images=str(trained / "photos"), **CUT)["question_id"])
    held_out = {index for index, name in enumerate(rows["question_id"]) if name not in kept}
    for checkpoint in (run, second):
        write_continued_recipe(file, str(checkpoint), tmp_path / "marked", str(trained / "data"), {})
        assert load_recipe(file).output_dir == tmp_path / "run_round3"
        assert load_recipe(file).validation_ratio == 0.34
        assert held_out_rows(str(checkpoint), tmp_path / "marked", str(trained / "data"), rows) == held_out
    write_continued_recipe(file, str(run), tmp_path / "marked", str(tmp_path), {})  # other data, without a split
    assert (load_recipe(file).validation_ratio, load_recipe(file).group_by) == (0.2, "image_id")


def test_next_round_reads_the_data_with_the_options_of_the_run(trained, tmp_path):
    data, marked, (run, second) = trained / "data", tmp_path / "marked", (tmp_path / name for name in ("run", "next"))
    for folder in (run, second):
        shutil.copytree(trained / "run", folder)
    for name in ("run.json", "_recipe.json"):  # the second run was trained on the annotations
        written = json.loads((second / name).read_text())
        (second / name).write_text(json.dumps(written | {"data": str(marked), "data_options": {}}))
    annotation_page(str(data), {}, str(run), "eva", marked)
    table = (marked / "train.jsonl").read_text()
    page = annotation_page(str(data), {}, str(second), "eva", marked)  # its pictures are in a folder of the options
    assert (marked / "train.jsonl").read_text() == table
    assert len(page.order) == len(load_rows(str(marked))) == 18


def test_objects_beside_the_table_are_taken_over(data, tmp_path):
    objects = [MarkedObject(name, "cube", Box(0, 0, 9, 9)) for name in ("images/picture1.png", "picture2", "other")]
    write_objects(data / "objects.jsonl", objects)
    page = annotation_page(str(data), {}, None, "eva", tmp_path / "annotated")
    assert page.annotations.counts == (18, 0, 4, 2)


def test_folder_of_annotations_lies_beside_the_data(data, monkeypatch):
    assert annotation_folder(str(data)) == data.with_name("data_annotated")
    assert annotation_folder(str(data / "train.csv")) == data / "train_annotated"
    monkeypatch.chdir(data)
    assert annotation_folder(".") == data.with_name("data_annotated")
    assert annotation_folder("owner/photos") == Path("annotated/photos")


def train_recipe(data, run, **keys):
    return make_recipe(
        {
            "data": str(data),
            "model": str(run.with_name("tiny")),
            "output_dir": str(run),
            **CUT,
            "max_steps": 1,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "per_device_train_batch_size": 12,
            "eval_strategy": "no",
            "save_strategy": "no",
            **keys,
        },
        "a test",
    )


def train_run(data, run, **keys):
    save_tiny_model(run.with_name("tiny"))
    train(train_recipe(data, run, **keys))
    return run


def answer_and_mass(checkpoint, picture, question, box):
    """The answer, and the share of the last hop's relevance in a box of the picture."""
    look = load_pipeline(str(checkpoint)).look(picture, question)
    inside = box.coverage(Image.open(picture).size, look.relevance.shape[:0:-1])
    return look.answers[0]["answer"], float((look.relevance[-1].numpy() * inside).sum())


@pytest.mark.slow
def test_annotator_draws_names_saves_and_the_trained_model_answers_and_looks_as_marked(data, tmp_path, monkeypatch):
    pytest.importorskip("selenium", reason="selenium is not installed")
    from helpers.visitor import CHROMEDRIVER, CHROMIUM, annotate
    from selenium.webdriver.common.keys import Keys

    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium-driver")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    run = train_run(data, tmp_path / "run")
    page = annotation_page(str(data), {}, str(run), "eva", tmp_path / "annotated")
    page.order.sort(key=lambda row: page.annotations.questions[row]["question"] != QUESTIONS[0])
    with annotate(page, tmp_path / "profile") as annotator:
        assert annotator.question.text == QUESTIONS[0]
        annotator.wait(lambda: annotator.find("#words label"))
        assert annotator.answer() == load_pipeline(str(run))(picture_of(page), QUESTIONS[0])[0]["answer"]
        annotator.drag((-0.4, -0.4), (-0.1, -0.1))
        annotator.press(Keys.ALT, "1")
        annotator.wait(lambda: annotator.field("name").get_attribute("value") == "cube")
        annotator.write("answer", "purple")
        annotator.press(Keys.CONTROL, Keys.ENTER)
        annotator.wait(lambda: "1 are saved" in annotator.counter())
        assert annotator.counter().startswith("2 of 18 questions have maps")
        assert annotator.errors() == []
    [saved] = json.loads((tmp_path / "annotated" / "annotators.json").read_text())["saved"]
    row = next(row for row in page.annotations.questions if row["question_id"] == saved)
    [marked] = page.annotations.objects(row["image_id"])
    assert [marked.region.left, marked.region.top, marked.region.right, marked.region.bottom] == pytest.approx(
        [6.4, 6.4, 25.6, 25.6], abs=4
    )
    maps = {
        entry["question"]: entry["relevance"]
        for entry in load_rows(str(tmp_path / "annotated"))
        if entry["image_id"] == row["image_id"]
    }
    assert [maps[question] is not None for question in QUESTIONS] == [True, True, False]
    picture = data / "images" / f"{row['image_id']}.png"
    _, before = answer_and_mass(run, picture, QUESTIONS[0], marked.region)
    recipe = load_recipe(tmp_path / "annotated" / "train.yaml", {"max_steps": "60"})
    train(recipe)
    answer, after = answer_and_mass(recipe.output_dir, picture, QUESTIONS[0], marked.region)
    assert answer == "purple"
    assert after > before + 0.2


def picture_of(page):
    return page.annotations.picture(page.annotations.questions[page.order[0]]["image_id"])
