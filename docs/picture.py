"""Take the README's picture of a report: ``python docs/picture.py demo/report.html``."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
]


def main(report: str) -> None:
    browser_path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=FLAGS)
        context = browser.new_context(viewport={"width": 1180, "height": 1150}, device_scale_factor=1.4)
        page = context.new_page()
        page.goto(Path(report).resolve().as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
        # Down to the end of what was kept and lost, however many sentences that takes.
        end = page.locator("figure.plot").first.evaluate(
            "f => f.getBoundingClientRect().bottom + scrollY + 20"
        )
        page.set_viewport_size({"width": 1180, "height": int(end)})
        page.wait_for_timeout(500)
        page.screenshot(path=Path(__file__).parent / "_static" / "report.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
