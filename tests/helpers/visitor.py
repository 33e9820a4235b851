"""A visitor of the demo app or of the annotation page in headless Chromium; also takes pictures of the app:

python tests/helpers/visitor.py CHECKPOINT IMAGE QUESTION SCREENSHOT.png
"""

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from modeling_qca.hub_card.annotation import launch_annotation
from modeling_qca.hub_card.annotation_page import AnnotationPage
from modeling_qca.hub_card.space.app import THEME, build_app

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    "window-size=1200,1400",
)
LOCALLY = {"prevent_thread_lock": True, "quiet": True, "inbrowser": False}
COLORFUL = 60  # difference of the channels of a pixel of a test picture; the page around it is gray
Person = TypeVar("Person", bound="Visitor")


class Visitor:
    """What a visitor does and sees."""

    patience = 60  # seconds

    def __init__(self, browser: webdriver.Chrome, address: str):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.question)

    def wait(self, happened: Callable):
        return WebDriverWait(self.browser, self.patience, 0.1).until(lambda _: happened())

    def find(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    @property
    def question(self) -> WebElement | None:
        return next(iter(self.find("#question textarea, #question input")), None)

    def upload(self, path: Path):
        self.find("#picture input[type=file]")[0].send_keys(str(path))
        self.wait(lambda: self.find("#picture img"))

    def picture(self, name: str) -> str:
        """Address of what a picture shows, which changes with its content."""
        shown = self.find(f"#{name} img")
        return shown[0].get_attribute("src") if shown else ""

    def ask(self, question: str):
        """With the keyboard alone."""
        before = self.picture("overlay")
        self.question.send_keys(Keys.CONTROL, "a")
        self.question.send_keys(question, Keys.ENTER)
        self.wait(lambda: self.picture("overlay") not in ("", before))

    def answer(self) -> str:
        return self.find("#answers [data-testid=label-output-value]")[0].text

    def words(self) -> list[str]:
        return [word.text for word in self.find("#words .text")]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


class Annotator(Visitor):
    """What an annotator does and sees."""

    patience = 240  # the editor draws with WebGL, which a busy processor computes slowly

    @property
    def question(self) -> WebElement | None:
        """The heading, once the page shows a question with its picture."""
        return next(iter(self.find("#question h2")), None) if self.find("#editor canvas") else None

    def field(self, name: str) -> WebElement:
        return self.find(f"#{name} textarea, #{name} input")[0]

    def write(self, name: str, text: str):
        self.field(name).send_keys(Keys.CONTROL, "a")
        self.field(name).send_keys(text)

    def drag(self, start: tuple[float, float], end: tuple[float, float]):
        """With the mouse, from a place of the picture to another one, in shares of its sides from the center."""
        canvas = self.find("#editor canvas")[0]
        place, size = self._picture_on(canvas)
        points = [tuple(round(place[axis] + share[axis] * size[axis]) for axis in (0, 1)) for share in (start, end)]
        mouse = ActionChains(self.browser, duration=50)
        mouse.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
        mouse.move_to_element_with_offset(canvas, *points[1]).release().perform()

    def press(self, modifier: str, key: str):
        ActionChains(self.browser).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def counter(self) -> str:
        return self.find("#counter")[0].text

    def _picture_on(self, canvas: WebElement) -> tuple[tuple[float, float], tuple[float, float]]:
        """Center, from that of the canvas, and size in pixels of the picture that the editor draws on its canvas."""
        shot = np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB")).astype(int)
        drawn = np.ptp(shot, axis=2) > COLORFUL
        rows, columns = np.flatnonzero(drawn.mean(axis=1) > 0.2), np.flatnonzero(drawn.mean(axis=0) > 0.2)
        scale = canvas.rect["width"] / shot.shape[1]
        edges = [(of[0] * scale, (of[-1] + 1) * scale) for of in (columns, rows)]
        middle = canvas.rect["width"] / 2, canvas.rect["height"] / 2
        center = tuple((low + high) / 2 - half for (low, high), half in zip(edges, middle, strict=True))
        return center, tuple(high - low for low, high in edges)


@contextmanager
def visit(checkpoint: str, profile: Path) -> Iterator[Visitor]:
    """Serve the app of `checkpoint` and open it in a browser whose profile is the new folder `profile`."""
    app = build_app(checkpoint)
    with browse(app, app.launch(theme=THEME, **LOCALLY)[1], profile, Visitor) as visitor:
        yield visitor


@contextmanager
def annotate(page: AnnotationPage, profile: Path) -> Iterator[Annotator]:
    """Serve the annotation page and open it in a browser whose profile is the new folder `profile`."""
    app = page.build()
    with browse(app, launch_annotation(app, **LOCALLY)[1], profile, Annotator) as annotator:
        yield annotator


@contextmanager
def browse(app: Any, address: str, profile: Path, visitor: type[Person]) -> Iterator[Person]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield visitor(browser, address)
    finally:
        browser.quit()
        app.close()


def main(checkpoint: str, image: str, question: str, screenshot: str):
    with tempfile.TemporaryDirectory() as profile, visit(checkpoint, Path(profile)) as visitor:
        visitor.upload(Path(image).absolute())
        visitor.ask(question)
        visitor.wait(visitor.words)
        visitor.browser.save_screenshot(screenshot)


if __name__ == "__main__":
    main(*sys.argv[1:])
