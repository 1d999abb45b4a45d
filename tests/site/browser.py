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
    """A fresh profile in one of VIEWS, with the theme's own switch set to the mode."""
    mode, width, height = VIEWS[view]
    made = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=mode
    )
    made.add_init_script(
        f"localStorage.setItem('mode','{mode}');localStorage.setItem('theme','{mode}')"
    )
    return made
