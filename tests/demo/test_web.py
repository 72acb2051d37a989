"""The page of `spikedet web` in headless Chromium, with a fake camera and without a network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from support.media import write_video
from support.places import ROOT

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]
SECONDS = 120  # that a busy machine may take for an answer
# the server must not even try to reach another machine
SERVER = """
import runpy, sys
def heard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[1][0] if event == "socket.connect" else args[0]
        if host not in ("127.0.0.1", "localhost", "::1", None):
            print("REACHED FOR", host, flush=True)
            raise OSError("no network")
sys.addaudithook(heard)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the demo serves, at T=4 and three frames of a video."""
    log = tmp_path_factory.mktemp("web") / "log"
    words = ["--T", "4", "--port", "0", "--frames", "3", "--most-steps", "6"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, "demo/web.py", *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    told = [process.stdout.readline() for _ in range(2)]
    try:
        assert told[0].startswith("tiny-yolo-s-snn-T4.safetensors, "), (told, log.read_text())
        yield told[1].split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and not rest and not log.read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (
        "headless=new",
        "no-sandbox",  # which root cannot have
        "disable-dev-shm-usage",
        "disable-gpu",
        "window-size=1100,1400",
        "use-fake-device-for-media-stream",
        "use-fake-ui-for-media-stream",
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page, by what a visitor does and sees."""

    def __init__(self, driver, address):
        self.driver, self.address, self.requests = driver, address, []
        driver.get_log("browser"), driver.get_log("performance")
        driver.get(address)
        self.until(lambda: self.data("ready") == "yes")

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def data(self, key):
        return self.driver.execute_script("return document.body.dataset[arguments[0]]", key)

    def answers(self):
        return int(self.data("answers") or 0)

    def until(self, seen):
        WebDriverWait(self.driver, SECONDS, 0.1).until(lambda _: seen(), self["message"].text)

    def answered(self, act):
        """Do something and wait for its answer."""
        before = self.answers()
        act()
        self.until(lambda: self.answers() > before)

    def boxes(self, canvas="spiking"):
        return int(self[canvas].get_attribute("data-boxes"))

    def drawn(self, canvas="spiking"):
        """Pixels of a canvas."""
        return self.driver.execute_script(
            "return document.getElementById(arguments[0]).toDataURL()", canvas
        )

    def press(self, slider, key, times):
        for _ in range(times):
            self[slider].send_keys(key)

    def shown(self):
        return int(self["step"].get_attribute("value")), int(self["step"].get_attribute("max"))

    def shown_nothing(self):
        """Whether no result stands on the page."""
        cells = [self[f"spiking-{name}"].text for name in ("objects", "time", "energy", "rate")]
        blank = self.driver.execute_script(
            "const c = document.createElement('canvas'), s = document.getElementById('spiking');"
            "[c.width, c.height] = [s.width, s.height]; return c.toDataURL()"
        )
        return cells == ["-"] * 4 and self.drawn() == blank and not self["play"].is_enabled()

    def close(self):
        """No error was in the console, no request left this machine."""
        errors = [e for e in self.driver.get_log("browser") if e["level"] != "INFO"]
        assert not errors, errors
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
        assert any(urlsplit(url).path == "/about" for url in asked)
        own = [u for u in asked if urlsplit(u).scheme not in ("data", "blob")]
        assert all(url.startswith(self.address) for url in own), own
        source = re.sub(r"data:image/[^\"]*", "", self.driver.page_source)  # letters of any kind
        assert "http" not in source.replace("http-equiv", "")


@pytest.fixture
def page(browser, address):
    opened = Page(browser, address)
    yield opened
    opened.close()


def test_a_picture_its_steps_and_the_float_network(page):
    assert "T=4" in page["about"].text and page["T"].get_attribute("max") == "6"
    page.answered(page["sample"].click)
    assert page.boxes() >= 2 and page.boxes("float") >= 3
    assert page.shown() == (3, 3) and page["step-value"].text == "step 4 of 4"
    assert page["spiking-title"].text == "spiking network, after 4 of 4 time steps"
    assert int(page["spiking-objects"].text) == page.boxes()
    assert page["spiking-energy"].text.endswith(" % of float)")
    assert page["float-energy"].text.endswith(" mJ") and page["float-time"].text.endswith(" ms")

    boxes, drawn = page.boxes(), page.drawn()
    page.press("conf", Keys.END, 1)
    assert page.boxes() == 0 and page.drawn() != drawn  # boxes are really on the picture
    page.press("conf", Keys.ARROW_LEFT, 14)
    assert page["conf-value"].text == "0.25"
    assert page.boxes() == boxes and page.drawn() == drawn

    page.press("step", Keys.HOME, 1)
    assert page["step-value"].text == "step 1 of 4" and page.boxes() != boxes
    assert page.drawn() != drawn
    page["play"].click()
    page.until(lambda: page.shown() == (3, 3) and page["play"].text == "play")
    assert page.drawn() == drawn

    page.answered(lambda: page["T"].send_keys(Keys.ARROW_LEFT))
    assert page["T-value"].text == "3" and page.shown() == (2, 2)
    assert "made for T=4 and see best there" in page["message"].text
    page.answered(page["beside"].click)
    assert not page["float-view"].is_displayed() and page["float-energy"].text == "-"
    page.answered(page["beside"].click)
    assert page["float-view"].is_displayed()


def test_firing_rates_and_spikes_of_a_layer(page):
    page.answered(page["sample"].click)
    bars = page.driver.find_elements(By.CSS_SELECTOR, "#rates .bar")
    widths = [float(bar.value_of_css_property("width").removesuffix("px")) for bar in bars]
    assert len(bars) == 20 and max(widths) > 20 and max(widths) > 2 * min(widths)
    page["spikes"].click()
    page.until(lambda: page["maps-title"].text.startswith("model.0.act, T=4."))
    figures = page.driver.find_elements(By.CSS_SELECTOR, "#maps figure")
    assert [f.text for f in figures[:2]] == ["step 1, all channels", "step 2, all channels"]
    assert len(figures) == 4 + 8
    first = figures[0].find_element(By.TAG_NAME, "img").get_attribute("src")
    Select(page["layer"]).select_by_visible_text("model.3.act")
    page["spikes"].click()
    page.until(lambda: page["maps-title"].text.startswith("model.3.act"))
    other = page.driver.find_element(By.CSS_SELECTOR, "#maps img").get_attribute("src")
    assert other.startswith("data:image/png") and other != first


def test_uploads(page, tmp_path):
    pixels = np.full((60, 90, 3), 120, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    page.answered(lambda: page["file"].send_keys(str(tmp_path / "grey.png")))
    assert page.boxes() == 0 and page["spiking"].get_attribute("width") == "90"
    assert page["message"].text.startswith("Nothing is found")
    page.answered(page["sample"].click)
    page.answered(lambda: page["file"].send_keys(str(tmp_path / "grey.png")))  # the same again
    assert page["spiking"].get_attribute("width") == "90"
    film = write_video(tmp_path / "film.mp4", [0, 0.1, 0.5, 0.7], 0.8)
    page.answered(lambda: page["file"].send_keys(str(film)))
    assert page["message"].text.startswith("These are its first 3 frames")
    assert page.shown() == (2, 2) and page["step-value"].text == "frame 3, 0.50 s"
    assert not page["spikes"].is_enabled()


def test_what_is_refused(page, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    page.answered(lambda: page["file"].send_keys(str(tmp_path / "damaged.png")))
    assert page["message"].text.startswith("this file: is not a picture that can be read")
    assert "error" in page["message"].get_attribute("class")
    assert page.shown_nothing()  # what was there before is not of this file
    (tmp_path / "words.txt").write_text("words")
    page["file"].send_keys(str(tmp_path / "words.txt"))
    assert page["message"].text == "This file is neither a picture nor a video."
    (tmp_path / "large.png").write_bytes(bytes(20_000_001))
    page["file"].send_keys(str(tmp_path / "large.png"))
    assert page["message"].text == "This file is too large; expected at most 20 MB."
    page.answered(page["sample"].click)
    assert page.boxes() > 0 and "error" not in page["message"].get_attribute("class")


@pytest.fixture
def phone(page):
    """The page as wide as a small telephone."""
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield page
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_small_telephone(phone):
    """Nothing goes beyond the screen; words on the picture can be read and do not overlap."""
    phone.answered(phone["sample"].click)
    phone["spikes"].click()
    phone.until(lambda: phone["maps-title"].text.startswith("model.0.act"))
    wide = phone.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide == 360
    places = [
        image.location["x"]
        for image in phone.driver.find_elements(By.CSS_SELECTOR, "#maps img")[:2]
    ]
    assert places[0] < places[1]  # two beside each other
    shown = phone["spiking"].size["width"] / int(phone["spiking"].get_attribute("width"))
    words = json.loads(phone["spiking"].get_attribute("data-words"))
    size = phone.driver.execute_script(
        "return parseFloat(document.getElementById('spiking').getContext('2d').font)"
    )
    assert len(words) == phone.boxes() >= 2 and size * shown >= 11.5
    for number, (x, y, w) in enumerate(words):
        for x2, y2, w2 in words[:number]:
            assert x >= x2 + w2 or x2 >= x + w or abs(y - y2) >= size


def test_a_server_that_is_gone(page):
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", gone)
    page["sample"].click()
    told = "The server does not answer. Does spikedet web still run?"
    page.until(lambda: page["message"].text == told)
    back = {**gone, "offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", back)
    page.driver.get_log("browser")  # the browser's own word about it
    page.answered(page["sample"].click)
    assert page.boxes() > 0


def test_the_camera(page):
    page["camera"].click()
    page.until(lambda: int(page.data("frames") or 0) >= 3)
    assert page["message"].text.endswith(" frames a second")
    first = page.drawn()
    assert page["spiking"].get_attribute("width") == "640"
    seen = int(page.data("frames"))
    page.until(lambda: int(page.data("frames")) > seen + 2 and page.drawn() != first)
    page["camera"].click()
    off = page["message"].text, page["camera"].text, page.data("frames")
    assert off[:2] == ("The camera is off.", "camera")
    time.sleep(0.5)  # the frame that was on its way says nothing any more
    assert (page["message"].text, page["camera"].text, page.data("frames")) == off
    page.answered(page["sample"].click)
    assert page.boxes() > 0
