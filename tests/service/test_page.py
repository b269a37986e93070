"""The search page in a real browser. Skipped, and said so, where there is no chromium and chromedriver."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.conftest import LIBRARY, Running, running

selenium = pytest.importorskip("selenium", reason="selenium is not installed: the search page is not tested")
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    not (DRIVER and BROWSER), reason="chromium or chromedriver is missing: the search page is NOT tested"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=900,1100"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    browser.get(f"{server.url}/")
    until(browser, lambda: browser.find_elements("css selector", "#collection option"))
    yield browser
    messages = [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")
    ]
    assert not messages, messages  # no script error, and nothing refused by the content security policy


def until(browser: Any, condition: Callable[[], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 15).until(lambda _: condition())


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def search(browser: Any, query: str, button: str = "search") -> None:
    field = find(browser, "#query")
    field.clear()
    field.send_keys(query)
    find(browser, f"button[value={button}]").click()


def test_search_shows_marked_passages_with_language(page: Any) -> None:
    search(page, "bees make honey")
    until(page, lambda: page.find_elements("css selector", "#hits li"))
    first = find(page, "#hits li")
    assert first.find_element("css selector", "h3").text == "Bees"
    assert first.find_element("css selector", ".language").text == "English"
    assert first.find_element("css selector", "mark").text.startswith("Bees make honey.")
    assert first.find_element("css selector", "a").get_attribute("href") == "https://example.org/bees"
    assert "q=bees" in page.current_url


def test_documents_are_text_never_markup_or_links_to_scripts(page: Any) -> None:
    search(page, "蜜蜂酿造蜂蜜")
    until(page, lambda: page.find_elements("css selector", "#hits li"))
    titles = [each.text for each in page.find_elements("css selector", "#hits h3")]
    assert "<b>蜜蜂</b>" in titles
    assert not page.find_elements("css selector", "#hits a[href^=javascript]")


def test_right_to_left_text_runs_right_to_left(page: Any) -> None:
    search(page, "النحل العسل")
    until(page, lambda: page.find_elements("css selector", "#hits li"))
    passage = find(page, '#hits .passage[lang="ar"]')
    direction = "return getComputedStyle(arguments[0]).direction"
    assert page.execute_script(direction, passage) == "rtl"
    assert page.execute_script(direction, find(page, "#query")) == "rtl"


def test_filters_and_addresses_that_can_be_shared(page: Any, server: Running) -> None:
    find(page, "#language").send_keys("de, ar")
    search(page, "bees")
    until(page, lambda: page.find_elements("css selector", "#hits li"))
    languages = {each.text for each in page.find_elements("css selector", "#hits .language")}
    assert languages <= {"German", "Arabic"} and languages
    page.get(page.current_url)  # as somebody else would open it
    until(page, lambda: page.find_elements("css selector", "#hits li"))
    assert find(page, "#language").get_attribute("value") == "de, ar"


def test_headings_are_bold_and_nothing_found_says_why(page: Any, server: Running) -> None:
    with server.client() as client:
        client.post("/v1/collections", json={"name": "headings"})
        text = "## Honey\n\nBees make it. # no heading"
        client.post("/v1/collections/headings/documents", json={"id": "x" * 500, "text": text})
    try:
        page.get(f"{server.url}/?q=bees+make+honey&collection=headings")
        until(page, lambda: page.find_elements("css selector", "#hits li"))
        assert find(page, ".passage strong").text == "Honey"
        assert " ".join(find(page, ".passage").text.split()) == "Honey Bees make it. # no heading"
        assert find(page, "#hits h3").size["height"] < 70  # two lines
        find(page, "#language").send_keys("fr")
        find(page, "button[value=search]").click()
        until(page, lambda: "Nothing found" in find(page, "#results-title").text)
        assert find(page, "#results-title").text == "Nothing found with this language and filter"
    finally:
        with server.client() as client:
            client.delete("/v1/collections/headings")


def test_back_at_the_start_the_page_is_as_new(page: Any) -> None:
    search(page, "bees")
    until(page, lambda: page.find_elements("css selector", "#hits li"))
    page.back()
    until(page, lambda: find(page, "#welcome").is_displayed())
    assert not find(page, "#results").is_displayed()
    assert (find(page, "#query").get_attribute("value"), page.title) == ("", "rwkv-embed")


def test_a_server_that_is_gone_is_said_so(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path / "s") as leaving:
        browser.get(f"{leaving.url}/")
        until(browser, lambda: browser.find_elements("css selector", "#collection option"))
        search(browser, "bees")
        until(browser, lambda: browser.find_elements("css selector", "#hits li"))
    search(browser, "bread")
    until(browser, lambda: find(browser, "#message").text)
    assert find(browser, "#message").text == "The server does not answer. Is it still running?"
    assert not find(browser, "#results").is_displayed()
    browser.get("about:blank")
    browser.get_log("browser")  # of the refused call


def test_answers_are_streamed_with_links_to_their_sources(page: Any) -> None:
    search(page, "What do bees make?", "ask")
    until(page, lambda: page.find_elements("css selector", "#citations li"))
    assert "Bees make honey." in find(page, "#answer-text").text
    assert find(page, "#answer-text a").get_attribute("href").endswith("#cited-1")
    assert find(page, "#cited-1 blockquote").text == "Bees make honey."
    assert find(page, "#answer-text").get_attribute("aria-busy") == "false"


def test_a_click_on_a_citation_does_not_ask_again(page: Any) -> None:
    search(page, "What do bees make?", "ask")
    until(page, lambda: page.find_elements("css selector", "#citations li"))
    count = "return performance.getEntriesByType('resource').filter(each => each.name.endsWith('/ask')).length"
    asked = page.execute_script(count)
    answer = find(page, "#answer-text").text
    find(page, "#answer-text a").click()
    until(page, lambda: page.current_url.endswith("#cited-1"))
    find(page, ".skip").send_keys("\ue007")  # Enter
    until(page, lambda: page.current_url.endswith("#found"))
    assert page.switch_to.active_element.get_attribute("id") == "found"
    page.execute_script("return new Promise(done => setTimeout(done, 100))")
    assert page.execute_script(count) == asked
    assert find(page, "#answer-text").text == answer and find(page, "#cited-1").is_displayed()


def test_languages_of_the_collection_are_offered(page: Any) -> None:
    until(page, lambda: page.find_elements("css selector", "#languages option"))
    offered = [each.get_attribute("value") for each in page.find_elements("css selector", "#languages option")]
    assert sorted(offered) == ["ar", "de", "en", "zh"]


def test_map_is_drawn_and_described(page: Any) -> None:
    find(page, "#map-button").click()
    until(page, lambda: page.find_elements("css selector", "#legend li"))
    label = find(page, "#plane").get_attribute("aria-label")
    assert label == f"{len(LIBRARY)} of {len(LIBRARY)} passages in 4 languages"
    painted = page.execute_script(
        "const c = document.getElementById('plane');"
        "const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return pixels.filter((value, place) => place % 4 === 3 && value).length"
    )
    assert painted > 100
    plane, read = find(page, "#plane"), set()
    for _ in LIBRARY:
        plane.send_keys("\ue014")  # the right arrow key
        read.add(find(page, "#point").text)
    assert len(read) == len(LIBRARY)
    plane.send_keys("\ue00c")  # Escape
    assert not find(page, "#point").is_displayed()


def test_it_fits_a_phone(page: Any) -> None:
    page.set_window_size(375, 700)
    search(page, "bees")
    until(page, lambda: page.find_elements("css selector", "#hits li"))
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.set_window_size(900, 1100)


def test_every_control_has_a_name(page: Any) -> None:
    find(page, "#map-button").click()
    controls = page.find_elements("css selector", "button, input, select, a, canvas")
    nameless = [
        each.get_attribute("outerHTML")
        for each in controls
        if each.is_displayed() and not each.accessible_name
    ]
    assert not nameless


def test_the_description_of_the_api_is_drawn_without_foreign_scripts(page: Any, server: Running) -> None:
    page.get(f"{server.url}/docs")
    until(page, lambda: page.find_elements("css selector", "details"))
    for each in page.find_elements("css selector", "details summary"):
        if "/v1/embeddings" in each.text:
            each.click()
            until(page, lambda: page.find_elements("css selector", "details[open] pre"))
            assert "curl -X POST" in find(page, "details[open] pre").text
            break
    else:
        pytest.fail("/v1/embeddings is not described")
    for each in page.find_elements("css selector", "details summary"):
        if each.text.startswith("DELETE"):
            each.click()
            shown = until(page, lambda each=each: each.find_elements("xpath", "../pre"))[0].text
            assert "/v1/collections/handbook" in shown and "default" not in shown


def test_a_server_with_keys_asks_for_one(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path / "s", api_keys="right") as guarded:
        browser.get(f"{guarded.url}/")
        until(browser, lambda: find(browser, "#key-form").is_displayed())
        assert "API key is needed" in find(browser, "#message").text
        find(browser, "#key").send_keys("right\n")
        until(browser, lambda: browser.find_elements("css selector", "#collection option"))
        assert not find(browser, "#key-form").is_displayed()
        browser.get("about:blank")
    browser.get_log("browser")  # of the refused call
