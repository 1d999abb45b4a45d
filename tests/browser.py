"""A real headless Chromium: Debian's, or the one that GEOLIB_CHROMIUM names."""

import os
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A page with formulas loads MathJax, which starts when it has loaded all of its parts.
TYPESET = """async () => {
  const formulas = document.querySelector('span.math, div.math');
  for (let i = 0; formulas && i < 200 && !window.MathJax?.startup?.promise; i++)
    await new Promise(done => setTimeout(done, 50));
  await window.MathJax?.startup?.promise; }"""
# Pictures load when they come near: here all that are shown do so at once.
LOADED = """() => Promise.all([...document.images].filter(i => i.checkVisibility()).map(i => {
  i.loading = 'eager'; return i.decode().catch(() => null); }))"""
# How far what is in view moves while a page loads, as browsers score it.
SHIFTED = """window.shifted = 0; new PerformanceObserver(list => {
  for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifted += e.value;
}).observe({type: 'layout-shift', buffered: true});"""
VIEWS = {"light-wide": ("light", 1280, 900), "dark-phone": ("dark", 390, 844)}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@contextmanager
def served(folder):
    """Serve `folder` on a free port inside a `with` block; yields its address."""
    handler = partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


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
    made.add_init_script("localStorage.setItem('mode', 'auto');" + SHIFTED)
    return made


def turn(page, view):
    """Show a page in another of VIEWS, as a system does that changes its mode."""
    page.mode, page.width, height = VIEWS[view]
    page.set_viewport_size({"width": page.width, "height": height})
    page.emulate_media(color_scheme=page.mode)


def settle(page, milliseconds=400):
    """Wait until a page that was loaded or turned has done all that it does then.

    The theme sets tab stops anew 300 ms after a change.
    """
    page.evaluate("() => new Promise(requestAnimationFrame)")
    page.wait_for_timeout(milliseconds)


def views(page, address, first="light-wide", anew=False):
    """Show a page in all views, with all formulas typeset; load it in the first, or `anew`."""
    for view in sorted(VIEWS, key=lambda name: name != first):
        turn(page, view)
        if view == first or anew:
            page.goto(address, wait_until="load")
            page.evaluate(TYPESET)
        settle(page)
        page.evaluate(LOADED)
        yield view
