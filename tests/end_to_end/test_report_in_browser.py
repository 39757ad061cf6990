"""The report of a real evaluation in a real browser: it draws, switches, fits a phone, and asks nobody for anything."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddim.display.page.write import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
in_browser = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None, reason="needs chromium and chromedriver (apt-get install chromium-driver)"
)
PHONE, DESKTOP = (390, 844), (1200, 900)


@pytest.fixture(scope="module")
def evaluated(trained_run, made_once, run_fork) -> Path:
    """The directory of an evaluation of all parts, beside the paper's table."""

    def evaluate(folder: Path) -> None:
        done = run_fork(
            *(folder, {}, "evaluate.py", f"checkpoint={trained_run}", "table=cifar10_table1"),
            "evaluation.parts=grid,reconstruction,consistency,interpolation,trajectory,diversity",
            *("sampler.steps=5,10", "sampler.eta=0,1", "evaluation.num_samples=70", "evaluation.grid_images=9"),
            *("evaluation.reconstruction.num_images=12", "evaluation.consistency.num_images=8"),
            *("evaluation.interpolation.lines=2", "evaluation.interpolation.corners=3", "logger=none"),
            f"hydra.run.dir={folder / 'run'}",
        )
        assert done.status == 0, done.output
        assert f"Report    {folder / 'run' / 'report.html'}" in done.output.replace("\n", "")

    return made_once("in_browser", evaluate) / "run"


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
        *("disable-component-update", "disable-sync", "disable-dev-shm-usage"),
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        # The driver is on this machine, whatever stands between it and others.
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        # With the paths given, selenium looks nowhere for a browser or a driver.
        service = webdriver.ChromeService(str(CHROMEDRIVER), log_output=subprocess.DEVNULL)
        browser = webdriver.Chrome(options=options, service=service)
        browser.get("about:blank")
        yield browser
        browser.quit()


def show(driver, page: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> None:
    """Open the page; what the logs held before is forgotten."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for name in ("browser", "performance"):
        driver.get_log(name)
    driver.get(page.as_uri())


def console(driver) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver) -> list[tuple[str, str]]:
    """(address, page it is for) of all that was asked for, be it of the network, of the disk or of the page itself."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [(each["request"]["url"], each["documentURL"]) for each in sent]


def visible_samples(driver) -> list[str]:
    """What stands above the sample grids that are seen, and their pictures."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.sample')].filter(f => f.offsetParent)"
        ".map(f => [f.querySelector('figcaption').innerText.trim(), f.querySelector('img').src])"
    )


def colours(driver) -> dict[str, int]:
    """How many different colours each chart has; a blank one has a single one."""
    return driver.execute_script(
        """return Object.fromEntries([...document.querySelectorAll('canvas')].map(canvas => {
            const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.id, new Set(new Uint32Array(pixels.buffer)).size];
        }))"""
    )


def test_rebuilding_gives_the_same_bytes(evaluated, tmp_path):
    written = (evaluated / "report.html").read_bytes()
    assert write_report([evaluated], tmp_path / "again.html").read_bytes() == written
    assert len(written) < 3_000_000


@in_browser
class TestReport:
    @pytest.mark.parametrize("size", [DESKTOP, PHONE])
    @pytest.mark.parametrize("several", [False, True])
    def test_it_draws_everything_without_a_complaint_or_a_request(self, driver, evaluated, tmp_path, size, several):
        page = evaluated / "report.html"
        if several:
            page = write_report([evaluated, shutil.copytree(evaluated, tmp_path / "other")], tmp_path / "both.html")
        show(driver, page, size)
        assert console(driver) == []
        asked = requested(driver)
        # Opening itself, the browser shows pages of its own: chrome:, chrome-untrusted:.
        strangers = [address for address, document in asked if document != page.as_uri()]
        assert [address for address in strangers if not address.startswith(("chrome", "data:"))] == []
        of_the_page = [address for address, document in asked if document == page.as_uri()]
        assert [address for address in of_the_page if not address.startswith("data:")] == [page.as_uri()]
        drawn = colours(driver)
        assert len(drawn) == 2 + 4 * (1 + several) and all(count > 20 for count in drawn.values()), drawn
        broken = "return [...document.images].filter(i => i.offsetParent && !(i.complete && i.naturalWidth)).length"
        assert driver.execute_script(broken) == 0
        titles = driver.execute_script("return [...document.querySelectorAll('h2')].map(h => h.innerText)")
        parts = ["Reconstruction", "Consistency", "Interpolation", "Trajectory", "Diversity", "Reproduce"]
        assert titles[-6:] == parts

    def test_the_paper_stands_beside_with_what_keeps_it_from_being_comparable(self, driver, evaluated):
        show(driver, evaluated / "report.html")
        said = driver.execute_script("return document.querySelector('[id^=paper-]').innerText")
        assert "paper 13.36" in said and "paper 41.07" in said and "not in the paper" in said
        assert "samples 70 (the paper: 50,000): all rows" in said

    def test_the_switch_shows_the_same_latents_under_each_setting(self, driver, evaluated):
        from selenium.webdriver.common.by import By

        show(driver, evaluated / "report.html")
        for eta, name in (("η = 0", "eta0.000"), ("η = 1", "eta1.000")):
            for steps in ("5", "10"):
                for value in (eta, steps):
                    chosen = f"//fieldset//input[@value='{value}']/.."
                    driver.find_element(By.XPATH, chosen).click()
                ((caption, picture),) = visible_samples(driver)
                assert caption.startswith(f"{eta}, S = {steps}, FD (digits-cnn)")
                file = evaluated / "samples" / f"{name}-quadratic-steps{int(steps):04d}.png"
                assert base64.b64decode(picture.partition(",")[2]) == file.read_bytes()

    def test_the_switch_is_worked_from_the_keyboard(self, driver, evaluated):
        from selenium.webdriver.common.keys import Keys

        show(driver, evaluated / "report.html")
        ((before, _),) = visible_samples(driver)
        driver.execute_script("document.querySelector('.switch input').focus()")
        driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        ((after, _),) = visible_samples(driver)
        assert before.startswith("η = 0, S = 5") and after.startswith("η = 1, S = 5")
        name = driver.execute_script("return document.querySelector('.switch input').labels[0].innerText")
        assert name.strip() == "η = 0"

    def test_a_point_of_a_chart_says_its_numbers(self, driver, evaluated):
        from selenium.webdriver.common.action_chains import ActionChains

        show(driver, evaluated / "report.html")
        canvas = driver.find_element("css selector", "#chart-distance-0")
        ActionChains(driver).scroll_to_element(canvas).move_to_element_with_offset(canvas, -300, 0).perform()
        tooltip = driver.execute_script(
            "const t = Chart.getChart('chart-distance-0').tooltip;return [t.opacity, t.title, t.body.map(b => b.lines)]"
        )
        rows = json.loads((evaluated / "results.json").read_text())["rows"]
        first = next(row for row in rows if row["eta"] == 0 and row["steps"] == 5)
        assert tooltip[0] > 0 and tooltip[1] == ["S = 5"]
        label, _, number = tooltip[2][0][0].partition(": ")
        value, _, sd = number.partition(" ± ")
        assert label == "η = 0" and float(sd) == pytest.approx(first["frechet_distance_sd"], rel=0.05)
        # A distance is shown as far as its deviation lets it.
        assert float(value) == pytest.approx(first["frechet_distance"], abs=0.1 * first["frechet_distance_sd"])

    def test_a_phone_does_not_scroll_sideways_but_in_wide_tables(self, driver, evaluated):
        show(driver, evaluated / "report.html", PHONE)
        assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        wide = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert driver.execute_script(wide) > 0

    def test_light_and_dark(self, driver, evaluated):
        seen = {}
        for scheme in ("light", "dark"):
            show(driver, evaluated / "report.html", scheme=scheme)
            seen[scheme] = driver.execute_script(
                "const s = getComputedStyle(document.body), c = Chart.getChart('chart-distance-0');"
                "return [s.backgroundColor, s.color, c.data.datasets[0].borderColor]"
            )
        for light, dark in zip(seen["light"], seen["dark"], strict=True):
            assert light != dark
        for background, ink, _ in seen.values():
            assert contrast(background, ink) > 7

    def test_the_policy_refuses_the_network(self, driver, evaluated):
        show(driver, evaluated / "report.html")
        refused = driver.execute_async_script(
            """const done = arguments[0];
            document.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
            const image = new Image();
            image.onload = () => done('loaded');
            image.src = 'http://127.0.0.1:9/x.png';"""
        )
        assert refused == "img-src"


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two colours as the browser writes them: rgb(20, 23, 27)."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
