"""The candidate page in a real browser: grade by keyboard, reload, export, import."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from galray.core.schema import GRADE_SCHEMA, SCORE_SCHEMA
from galray.scan.candidates import select
from galray.scan.known import KnownObjects
from galray.scan.page import page
from galray.scan.vetting import merge, purity, read_grades

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the PATH"
)

FIRST_ID = 587722981736906879  # an SDSS id; a JavaScript number rounds it to another galaxy's
HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
OFFLINE = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


class Page:
    """The page as a grader meets it."""

    def __init__(self, driver, path: Path, downloads: Path) -> None:
        self.driver, self.path, self.downloads = driver, path, downloads
        self.open()

    def open(self) -> None:
        self.driver.get(self.path.as_uri())

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def text(self, selector: str) -> str:
        return self.driver.find_element(By.CSS_SELECTOR, selector).get_property("textContent")

    def sort_by(self, key: str) -> None:
        self.click(f"#sort option[value={key}]")

    def search(self, text: str) -> None:
        field = self.driver.find_element(By.ID, "search")
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE, text, Keys.ENTER)

    def enter_name(self, name: str) -> None:
        field = self.driver.find_element(By.ID, "grader")
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, name, Keys.ENTER)

    def visible_ids(self) -> list[int]:
        cards = self.driver.find_elements(By.CSS_SELECTOR, ".card:not([hidden])")
        return [int(card.get_attribute("data-id")) - FIRST_ID for card in cards]

    def grades(self) -> dict[int, str]:
        cards = self.driver.find_elements(By.CSS_SELECTOR, ".card:not([data-grade=''])")
        return {int(c.get_attribute("data-id")) - FIRST_ID: c.get_attribute("data-grade") for c in cards}

    def export(self) -> bytes:
        self.click("#export")
        WebDriverWait(self.driver, 10).until(lambda _: self.exported())
        return self.exported()[0].read_bytes()

    def take_in(self, grades: Path) -> None:
        self.driver.find_element(By.ID, "import-file").send_keys(str(grades))
        WebDriverWait(self.driver, 10).until(lambda _: "Imported" in self.text("#said"))

    def exported(self) -> list[Path]:
        return list(self.downloads.glob("*.csv"))


def candidate_table(n: int, tile: str = "tile.fits", *, random_arm: bool = False) -> pa.Table:
    rows = {
        "galaxy_id": FIRST_ID + np.arange(n),
        "ra": (37.0 * np.arange(n)) % 360,
        "dec": np.linspace(-5, 5, n),
        "tile": [tile] * n,
        "score": np.linspace(0.99, 0.6, n, dtype=np.float32),
        "score_sd": pa.nulls(n, pa.float32()),
        "early_type": np.full(n, 0.5, dtype=np.float32),
        "flags": (np.arange(n) % 4 == 3).astype(np.int32),
        "radius_arcsec": np.full(n, 4.5, dtype=np.float32),
        "magnitude": pa.array([17.0 - i if i else None for i in range(n)], pa.float32()),
        "random_arm": np.full(n, random_arm) & (np.arange(n) % 3 == 2),
        "image": [_jpeg(i) for i in range(n)],
    }
    scores = pa.table(rows, schema=SCORE_SCHEMA)
    dec_of_known = np.array([scores["dec"][1].as_py() if n > 1 else 80.0, 89.0])
    known = KnownObjects(("NGC 4370", "far away"), np.array([37.0, 0.0]), dec_of_known)
    options = {"train_prevalence": 0.5, "survey_prevalence": None, "known": known}
    return select(scores, threshold=0.5, count=None, **options)


def _jpeg(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (9 * i, 60, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (*OFFLINE, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Callable[[pa.Table], Page]:
    """Return a function that opens the page of a candidate table in headless Chromium."""
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
    )

    def open_page(candidates: pa.Table) -> Page:
        path = tmp_path / "candidates.html"
        path.write_text(page(candidates, title="Dust lanes", run_id=tmp_path.name), encoding="utf-8")
        return Page(driver, path, tmp_path / "downloads")

    return open_page


def test_grade_ten_undo_one_reload_export(show):
    candidates = candidate_table(12)
    browser = show(candidates)
    browser.enter_name('Ann "A." Núñez, Bonn')
    browser.press(*"abcxrAabcx")
    assert browser.text("#progress-text") == "10 of 12 graded"
    browser.press("u")
    assert browser.text("#progress-text") == "9 of 12 graded"

    browser.open()
    expected = dict(enumerate(["A", "B", "C", "reject", "reject", "A", "A", "B", "C"]))
    assert browser.grades() == expected
    assert browser.text("#where") == "10 of 12"  # opens at the first ungraded

    data = browser.export()
    assert data.decode().splitlines()[0].split(",") == GRADE_SCHEMA.names
    grades = read_grades(data, "export.csv")
    assert grades["galaxy_id"].to_pylist() == [FIRST_ID + i for i in expected]
    assert grades["grade"].to_pylist() == list(expected.values())
    assert set(grades["grader"].to_pylist()) == {'Ann "A." Núñez, Bonn'}
    graded, rejects = merge(candidates, grades)
    assert (purity(graded).count, purity(graded).total, rejects.num_rows) == (5, 9, 0)


def test_move_regrade_and_take_away_by_keyboard(show):
    browser = show(candidate_table(12))
    browser.press("a", Keys.ARROW_LEFT, "b", "j", "j", "c", "k", "x", Keys.HOME, Keys.DELETE)
    assert browser.grades() == {3: "reject"}
    webdriver.ActionChains(browser.driver).key_down(Keys.CONTROL).send_keys("z").perform()
    webdriver.ActionChains(browser.driver).key_up(Keys.CONTROL).perform()
    assert browser.grades() == {0: "B", 3: "reject"}
    browser.press(Keys.END, "a", Keys.HOME, "n", "c")
    assert browser.grades() == {0: "B", 1: "C", 3: "reject", 11: "A"}


def test_typing_a_name_grades_nothing(show):
    browser = show(candidate_table(3))
    browser.enter_name("abc xr")
    assert browser.grades() == {}
    browser.press("b")
    assert browser.grades() == {0: "B"}


def test_sort_and_filter(show):
    browser = show(candidate_table(12))
    by_ra = sorted(range(12), key=lambda i: (37 * i) % 360)
    browser.sort_by("ra")
    assert browser.visible_ids() == by_ra
    browser.click("#reverse")
    assert browser.visible_ids() == by_ra[::-1]
    browser.click("#reverse")
    browser.sort_by("magnitude")
    assert browser.visible_ids() == [*range(11, 0, -1), 0]  # brightest first, what is missing last
    browser.sort_by("score")
    browser.click("#known-filter label:nth-of-type(2)")
    assert browser.visible_ids() == [1]
    assert browser.text(".card:not([hidden]) .known") == "known"
    browser.click("#known-filter label:nth-of-type(1)")
    for text, expected in (("4370", [1]), (str(FIRST_ID + 7), [7]), ("no such", [])):
        browser.search(text)
        assert browser.visible_ids() == expected
    browser.search("")
    browser.click("#flag-filter label:nth-of-type(3)")
    assert browser.visible_ids() == [3, 7, 11]
    browser.click("#flag-filter label:nth-of-type(1)")
    browser.press("a", "b")
    browser.click("#grade-filter label:nth-of-type(2)")
    assert 3 not in browser.visible_ids()
    assert len(browser.visible_ids()) == 10
    floor = browser.driver.find_element(By.ID, "floor")
    browser.driver.execute_script(
        "arguments[0].value = 0.8; arguments[0].dispatchEvent(new Event('input'))", floor
    )
    scores = candidate_table(12)["score"].to_pylist()
    assert browser.visible_ids() == [i for i in range(12) if scores[i] >= 0.8 and i not in browser.grades()]


def test_a_page_with_a_random_arm_opens_blind_and_mixed(show):
    browser = show(candidate_table(30, random_arm=True))
    mixed = browser.visible_ids()
    assert sorted(mixed) == list(range(30))
    assert mixed != list(range(30))
    scored = browser.driver.find_elements(By.CSS_SELECTOR, ".scored, .number")
    assert scored
    assert not any(element.is_displayed() for element in scored)
    assert "random" not in browser.text("#grid").lower()
    browser.press("a", "h")
    assert browser.grades() == {mixed[0]: "A"}
    assert browser.driver.find_element(By.CSS_SELECTOR, ".probability").is_displayed()
    browser.sort_by("score")
    assert browser.visible_ids() == list(range(30))


def test_thousands_are_paged(show):
    browser = show(candidate_table(1234))
    assert browser.text("#page-text") == "Page 1 of 7"
    assert browser.visible_ids() == list(range(200))
    browser.press(Keys.PAGE_DOWN)
    assert browser.visible_ids() == list(range(200, 400))
    browser.press(Keys.ARROW_LEFT)
    assert browser.text("#where") == "200 of 1234"
    assert browser.visible_ids() == list(range(200))
    browser.press("b")
    assert browser.text("#where") == "201 of 1234"
    browser.press(Keys.END)
    assert browser.text("#page-text") == "Page 7 of 7"
    browser.click("#grade-filter label:nth-of-type(4)")
    assert browser.visible_ids() == [199]
    assert not browser.driver.find_element(By.ID, "pages").is_displayed()


def test_grades_exported_elsewhere_are_imported_to_go_on(show):
    browser = show(candidate_table(12))
    browser.enter_name("Ann")
    browser.press(*"abcx")
    browser.export()
    browser.driver.execute_script("localStorage.clear()")
    browser.open()
    assert browser.grades() == {}
    browser.take_in(browser.exported()[0])
    assert browser.grades() == {0: "A", 1: "B", 2: "C", 3: "reject"}
    assert browser.driver.find_element(By.ID, "grader").get_property("value") == "Ann"
    browser.press("u")
    assert browser.grades() == {}


def test_an_import_leaves_out_other_graders_and_strangers_and_says_so(show, tmp_path):
    browser = show(candidate_table(12))
    browser.enter_name("Ann")
    grades = tmp_path / "grades.csv"
    lines = (f"{FIRST_ID},a,Ann,", "", f'{FIRST_ID + 1},A,"Bob, B.",', "1,A,Ann,", f"{FIRST_ID + 2},Z,Ann,")
    grades.write_text("\ufeffgalaxy_id,grade,grader,graded_utc\r\n" + "\r\n".join(lines), encoding="utf-8")
    browser.take_in(grades)
    assert browser.grades() == {0: "A"}
    assert "Imported 1 grade; 1 by other graders left out" in browser.text("#said")
    assert "2 left out: not of this list" in browser.text("#said")


@pytest.mark.parametrize(("answer", "left"), [("rename", {0: "A"}), ("switch", {})])
def test_another_name_is_the_same_grader_or_starts_afresh(show, answer, left):
    browser = show(candidate_table(3))
    browser.enter_name("Ann")
    browser.press("a")
    browser.enter_name("Bob")
    browser.click(f"#grader-dialog button[value={answer}]")
    WebDriverWait(browser.driver, 10).until(lambda _: browser.grades() == left)
    browser.press("c")
    grades = read_grades(browser.export(), "export.csv").to_pylist()
    assert {row["grader"] for row in grades} == {"Bob"}
    assert len(grades) == len(left) + 1


def test_an_export_without_a_name_asks_for_it(show):
    browser = show(candidate_table(3))
    browser.press("a")
    browser.click("#export")
    assert "Enter your name first" in browser.text("#said")
    assert browser.driver.switch_to.active_element.get_attribute("id") == "grader"


def test_hostile_strings_do_not_run_and_nothing_is_fetched(show):
    browser = show(candidate_table(3, tile=HOSTILE))
    for log in ("browser", "performance"):
        browser.driver.get_log(log)  # what earlier tests left
    browser.open()
    browser.press("j", "a", "?")
    assert browser.driver.title == "Dust lanes"
    browser.click("#help-dialog button")
    assert HOSTILE in browser.text("#details")
    assert browser.driver.get_log("browser") == []
    requests = [entry["message"] for entry in browser.driver.get_log("performance")]
    assert not [
        message for message in requests if "requestWillBeSent" in message and '"url":"http' in message
    ]
