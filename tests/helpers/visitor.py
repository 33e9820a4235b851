"""A visitor of the demo app in headless Chromium; also takes its picture for the README:

python tests/helpers/visitor.py CHECKPOINT IMAGE QUESTION SCREENSHOT.png
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

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


class Visitor:
    """What a visitor does and sees."""

    def __init__(self, browser: webdriver.Chrome, address: str):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.question)

    def wait(self, happened: Callable):
        return WebDriverWait(self.browser, 60, 0.1).until(lambda _: happened())

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


@contextmanager
def visit(checkpoint: str, profile: Path) -> Iterator[Visitor]:
    """Serve the app of `checkpoint` and open it in a browser whose profile is the new folder `profile`."""
    app = build_app(checkpoint)
    _, address, _ = app.launch(theme=THEME, prevent_thread_lock=True, quiet=True, inbrowser=False)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield Visitor(browser, address)
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
