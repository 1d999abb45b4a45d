"""`python -m geolib` is the command `geolib`."""

from geolib.press.cli import app

app(prog_name="geolib")
