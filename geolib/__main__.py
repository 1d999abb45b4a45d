"""`python -m geolib` is the command `geolib`."""

from geolib.press.cli import app

if __name__ == "__main__":
    app(prog_name="geolib")
