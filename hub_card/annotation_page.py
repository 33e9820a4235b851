"""The page of `qca annotate`: mark where to look and correct the answer, one question after another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from modeling_qca.training.supervision.annotation_folder import AnnotationFolder
from modeling_qca.training.supervision.detection.question_words import object_words
from modeling_qca.training.supervision.marked_objects import MarkedObject
from modeling_qca.training.supervision.regions import Box, Mask, Region

from .space.app import SIDE, gr, picture

TITLE = "Show it where to look"
HELP = """Drag from corner to corner of what the question is about, name it, and save. A mark belongs to the picture.
It serves every question that names it.

**Ctrl+Enter** saves and goes on, **Alt+S** skips, **Alt+B** goes back, **Alt+A** adds another object, **Alt+1** to
**Alt+9** take a word of the question as the name."""
BOX, STROKES = "box around the strokes", "area of the strokes"
OPACITY = 0.6  # of a marked object
EDITOR_SIDE = 768  # pixels of the longer side of the picture that is drawn on
SHORTCUTS = """<script>
document.addEventListener("keydown", event => {
  const buttons = {KeyS: "#skip", KeyB: "#back", KeyA: "#add"};
  let target = null;
  if (event.ctrlKey && event.key === "Enter") target = "#save";
  else if (event.altKey && event.code in buttons) target = buttons[event.code];
  else if (event.altKey && /^Digit[1-9]$/.test(event.code))
    target = `#words label:nth-of-type(${event.code[5]}) input`;
  if (target !== null) { event.preventDefault(); document.querySelector(target)?.click(); }
}, true);
</script>"""


@dataclass(frozen=True)
class Session:
    """What one visitor works on.

    Args:
        row: number of the question; None if all are saved.
        stored: objects of the picture in the file.
        objects: these and the objects added since.
        before: questions that the visitor had before.
    """

    row: int | None = None
    stored: tuple[MarkedObject, ...] = ()
    objects: tuple[MarkedObject, ...] = ()
    before: tuple[int, ...] = ()


class AnnotationPage:
    """
    Args:
        annotations: what is read and written.
        annotator: who works on the page.
        order: row numbers, in the order in which their questions are shown.
        ask: the pipeline whose answers and maps are shown; None for none.
        command: trains with what is saved; it is shown below.
    """

    def __init__(self, annotations: AnnotationFolder, annotator: str, order: Sequence[int], ask: Any, command: str):
        self.annotations, self.annotator, self.order, self.ask = annotations, annotator, order, ask
        self.command = command

    def build(self) -> gr.Blocks:
        with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
            gr.Markdown(f"# {TITLE}\n{HELP}")
            self.shown: dict[str, Any] = {"session": gr.State(Session())}
            self.shown["counter"] = gr.Markdown(elem_id="counter")
            with gr.Row():
                with gr.Column(min_width=300, scale=3):
                    self.shown |= marking_components()
                    buttons = action_buttons()
                with gr.Column(min_width=300, scale=2):
                    self.shown |= evidence_components(self.ask is not None)
            gr.Markdown(f"Train with what is saved: `{self.command}`", elem_id="command")
            self._listen(page, buttons)
        return page

    def _listen(self, page: gr.Blocks, buttons: dict[str, gr.Button]) -> None:
        shown = self.shown
        outputs = list(shown.values())
        drawn = [shown[name] for name in ("session", "editor", "shape", "name")]
        progress: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": shown["counter"]}
        page.load(self.show_next, [shown["session"]], outputs, **progress)
        buttons["add"].click(self.add, [*drawn, shown["kept"]], outputs, **progress)
        buttons["save"].click(self.save, [*drawn, shown["answer"], shown["kept"]], outputs, **progress)
        buttons["skip"].click(self.skip, [shown["session"]], outputs, **progress)
        buttons["back"].click(self.go_back, [shown["session"]], outputs, **progress)
        shown["words"].input(lambda word: word, [shown["words"]], [shown["name"]], show_progress="hidden")
        hop = [shown["explanation"], shown["hop"]]
        shown["hop"].input(hop_overlay, hop, [shown["overlay"]], show_progress="hidden")

    def show_next(self, session: Session) -> dict[Any, Any]:
        """The question that comes next."""
        return self._show(self.annotations.open_next(self.annotator, self.order), session.before)

    def add(self, session: Session, editor: dict, shape: str, name: str, kept: list[int]) -> dict[Any, Any]:
        """Keep what is drawn as an object, and clear the drawing for another one."""
        objects = self._objects(session, editor, shape, name)
        if len(objects) == len(session.objects):
            raise gr.Error("Draw an object and name it first.")
        ticked = [*kept, len(session.objects)]
        session = replace(session, objects=objects)
        return self._marks(session, ticked) | {self.shown["session"]: session}

    def save(
        self, session: Session, editor: dict, shape: str, name: str, answer: str, kept: list[int]
    ) -> dict[Any, Any]:
        """Write the question's answer and objects, and show the next question."""
        if session.row is None:
            raise gr.Error("All questions are saved.")
        objects = self._objects(session, editor, shape, name)
        unticked = {item for number, item in enumerate(session.objects) if number not in kept}
        added = [item for item in objects if item not in session.stored and item not in unticked]
        try:
            self.annotations.save(session.row, self.annotator, answer, added, list(unticked))
        except ValueError as error:
            raise gr.Error(f"Not saved: {error}.") from error
        return self.show_next(replace(session, before=(*session.before, session.row)))

    def skip(self, session: Session) -> dict[Any, Any]:
        """Leave the question for later."""
        if session.row is None:
            raise gr.Error("All questions are saved.")
        self.annotations.skip(session.row, self.annotator)
        return self.show_next(replace(session, before=(*session.before, session.row)))

    def go_back(self, session: Session) -> dict[Any, Any]:
        """Show the question before."""
        if not session.before:
            raise gr.Error("There is no question before this one.")
        *before, row = session.before
        self.annotations.open(row, self.annotator)
        return self._show(row, tuple(before))

    def _objects(self, session: Session, editor: dict, shape: str, name: str) -> tuple[MarkedObject, ...]:
        """The session's objects and the one that is drawn."""
        name = " ".join((name or "").split())
        if session.row is None:
            return ()
        image_id = self.annotations.questions[session.row]["image_id"]
        region = drawn_region(editor, shape, self.annotations.picture(image_id).size)
        if region is None and name:
            raise gr.Error(f"Nothing is drawn for {name!r}: draw it, or empty the name.")
        if region is None:
            return session.objects
        if not name:
            raise gr.Error("Name what you drew: a word of the question, or another name.")
        return (*session.objects, MarkedObject(image_id, name, region, self.annotator))

    def _show(self, row: int | None, before: tuple[int, ...]) -> dict[Any, Any]:
        """New values of all components."""
        shown, counts = self.shown, self.annotations.counts
        counter = (
            f"**{counts.with_maps}** of {counts.questions} questions have maps. {counts.saved} are saved, "
            f"{counts.objects} objects are marked."
        )
        if row is None:
            done = {shown["session"]: Session(before=before), shown["editor"]: None, shown["question"]: "## All saved"}
            return done | {shown["counter"]: counter}
        question = self.annotations.questions[row]
        stored = tuple(self.annotations.objects(question["image_id"]))
        session = Session(row, stored, stored, before)
        return {
            shown["session"]: session,
            shown["counter"]: counter,
            shown["question"]: f"## {question['question']}",
            shown["answer"]: self.annotations.answer(row),
            **self._marks(session, range(len(stored))),
            **self._look(session),
        }

    def _marks(self, session: Session, ticked: Sequence[int]) -> dict[Any, Any]:
        """The empty drawing, names to choose from, and the objects of the picture with the numbers of those ticked."""
        shown, row = self.shown, self.annotations.questions[session.row]
        image = self.annotations.picture(row["image_id"])
        words = dict.fromkeys([*self.annotations.labels(session.row), *object_words(row["question"])])
        small = fitted(image, EDITOR_SIDE)
        labels = [(self._described(session.row, item), number) for number, item in enumerate(session.objects)]
        return {
            shown["editor"]: {"background": small, "layers": [], "composite": None},
            shown["name"]: "",
            shown["words"]: gr.Radio(list(words), value=None),
            shown["kept"]: gr.CheckboxGroup(labels, value=list(ticked), visible=bool(labels)),
            shown["objects"]: (small, [annotation(item, image.size, small.size) for item in session.objects]),
        }

    def _described(self, row: int, item: MarkedObject) -> str:
        serves = self.annotations.naming(row, item.label)
        by = f", by {item.annotator}" if item.annotator not in ("", self.annotator) else ""
        return f"{item.label} ({serves} question{'' if serves == 1 else 's'} about the picture{by})"

    def _look(self, session: Session) -> dict[Any, Any]:
        """The model's answers and its map, which is that of the gradient for a model without hops."""
        if self.ask is None:
            return {}
        shown, row = self.shown, self.annotations.questions[session.row]
        image = self.annotations.picture(row["image_id"])
        try:
            explanation = self.ask.look(image, row["question"]).fit(SIDE)
        except ValueError:  # some encoders have no gradient map
            if self.ask.model.config.num_attention_layers > 0:
                raise
            answers = self.ask(image, row["question"])
            return {shown["answers"]: {entry["answer"]: entry["score"] for entry in answers}}
        hops = len(explanation.relevance)
        return {
            shown["explanation"]: explanation,
            shown["answers"]: {entry["answer"]: entry["score"] for entry in explanation.answers},
            shown["hop"]: gr.Slider(maximum=max(hops, 2), value=hops, visible=hops > 1),
            shown["overlay"]: hop_overlay(explanation, hops),
        }


def marking_components() -> dict[str, Any]:
    """What the visitor draws and writes."""
    return {
        "question": gr.Markdown(elem_id="question"),
        "editor": gr.ImageEditor(
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=3, colors=["#ff2d2d"], color_mode="fixed"),
            format="png",
            buttons=[],
            label="Picture",
            show_label=False,
            elem_id="editor",
        ),
        "shape": gr.Radio([BOX, STROKES], value=BOX, label="Mark the", elem_id="shape"),
        "words": gr.Radio([], label="Name of what you drew", elem_id="words"),
        "name": gr.Textbox(show_label=False, placeholder="or another name", elem_id="name"),
        "answer": gr.Textbox(label="Right answer", elem_id="answer"),
    }


def action_buttons() -> dict[str, gr.Button]:
    with gr.Row():
        return {
            "save": gr.Button("Save, next", variant="primary", elem_id="save"),
            "add": gr.Button("Another object", elem_id="add"),
            "skip": gr.Button("Skip", elem_id="skip"),
            "back": gr.Button("Back", elem_id="back"),
        }


def evidence_components(has_model: bool) -> dict[str, Any]:
    """What is known about the question: the model's answers and map, and the objects of the picture."""
    return {
        "explanation": gr.State(None),
        "answers": gr.Label(label="The model's answers", num_top_classes=3, visible=has_model, elem_id="answers"),
        "overlay": picture("Where the model looked", "overlay", visible=has_model),
        "hop": gr.Slider(1, 2, 2, step=1, label="Hop", visible=False, elem_id="hop"),
        "objects": gr.AnnotatedImage(label="Marked objects", elem_id="objects"),
        "kept": gr.CheckboxGroup([], label="Untick what is wrong", visible=False, elem_id="kept"),
    }


def hop_overlay(explanation: Any, hop: float) -> Image.Image | None:
    """The picture with the map of a hop, which count from 1."""
    return None if explanation is None else explanation.overlay(int(hop) - 1, caption=False)


def drawn_region(editor: dict | None, shape: str, size: tuple[int, int]) -> Region | None:
    """
    What is drawn in an editor; None if nothing is.

    Args:
        editor: value of the component: RGBA `layers` over the picture, at any scale.
        shape: `BOX`, or `STROKES` with what they enclose.
        size: width and height of the picture in pixels.
    """
    layers = [np.asarray(layer.convert("RGBA"))[..., 3] > 0 for layer in (editor or {}).get("layers", ())]
    strokes = np.logical_or.reduce(layers) if layers else np.zeros((1, 1), dtype=bool)
    if not strokes.any():
        return None
    if shape == STROKES:
        return Mask.from_array(ndimage.binary_fill_holes(strokes))
    down, across = (np.flatnonzero(strokes.any(axis=axis)) for axis in (1, 0))
    x, y = size[0] / strokes.shape[1], size[1] / strokes.shape[0]
    return Box(*map(float, (across[0] * x, down[0] * y, (across[-1] + 1) * x, (down[-1] + 1) * y)))


def annotation(item: MarkedObject, size: tuple[int, int], shown: tuple[int, int]) -> tuple[Any, str]:
    """An object for `gradio.AnnotatedImage`: the pixels it covers on a picture of `size`, shown at another size."""
    return item.region.coverage(size, shown) * OPACITY, item.label or "unnamed"


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The image, not larger than `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    return small
