"""What a run on a GPU measured for each claim, kept beside the pages as data."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version
from pathlib import Path

from geolib.press.ledger import Ledger
from geolib.press.notebook import PressError
from geolib.sweep.store import Measured, measured, write

GPU_LEDGER = "book/claims-gpu.json"  # where that of a run on a GPU was kept


class DeviceLedger(Measured):
    """What a run on another device measured for each claim.

    `about` holds the device, the profile, the versions and the date; `entries` by the
    key of a claim what was shown and measured, the bound and the verdict.
    """

    @property
    def sentence(self) -> str:
        """One sentence about the run."""
        a = self.about
        versions = ", ".join(f"{k} {v}" for k, v in a["versions"].items())
        when = f"On {a['device']}: profile {a['profile']}, {a['date']}"
        return f"{when}, {versions}, {len(self.entries)} claims."


def save_device_ledger(ledger: Ledger, path: Path) -> DeviceLedger:
    """Store the rows of a ledger that were measured on a GPU, for the published page.

    Raises:
        PressError: none was, or several kinds of GPU were in use.
    """
    devices = sorted({r["device"] for r in ledger.rows} - {"cpu"})
    if len(devices) != 1:
        found = ", ".join(devices) or "a CPU only"
        wanted = f"the run of profile {ledger.profile} to be on one kind of GPU"
        command = f"geolib run --profile {ledger.profile} --device cuda"
        raise PressError(f"keep: expected {wanted}, got {found}; run `{command}` first")
    about = {
        "device": devices[0],
        "profile": ledger.profile,
        "versions": {"Python": platform.python_version(), "torch": version("torch")},
        "date": datetime.date.today().isoformat(),
    }
    names = ("shown", "measured", "bound", "verdict")
    there = [r for r in ledger.rows if r["device"] == devices[0]]
    kept = DeviceLedger(about, {r["key"]: {n: r[n] for n in names} for r in there})
    write(path, kept)
    return kept


def load_device_ledger(path: Path) -> DeviceLedger | None:
    """The stored ledger of a GPU run; None where none is stored.

    Raises:
        PressError: the file is damaged.
    """
    try:
        found = measured(path)
    except ValueError as error:
        raise PressError(f"{path.name}: not a ledger that was kept ({error})") from None
    return DeviceLedger(found.about, found.entries) if found.entries else None
