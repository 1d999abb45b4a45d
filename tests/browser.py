"""A real headless Chromium: Debian's, or the one that GEOLIB_CHROMIUM names."""

import os
import shutil

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VIEWS = {"light-wide": ("light", 1280, 900), "dark-phone": ("dark", 390, 844)}


def executable() -> str | None:
    """Path of a Chromium, or None."""
    named = os.environ.get("GEOLIB_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


def start(playwright):
    """Launch the browser."""
    return playwright.chromium.launch(executable_path=executable(), args=FLAGS)


def context(browser, view):
    """A fresh profile in one of VIEWS; the theme follows the system's colours."""
    mode, width, height = VIEWS[view]
    made = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=mode
    )
    made.add_init_script("localStorage.setItem('mode', 'auto')")
    return made


def turn(page, view):
    """Show a loaded page in another of VIEWS, as a system does that changes its mode."""
    page.mode, page.width, height = VIEWS[view]
    page.set_viewport_size({"width": page.width, "height": height})
    page.emulate_media(color_scheme=page.mode)
    page.evaluate("() => new Promise(requestAnimationFrame)")
    page.wait_for_timeout(
        500
    )  # 300 ms after a change the theme sets its tab stops anew
