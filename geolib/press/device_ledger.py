"""The ledger of a run on a GPU, kept as data beside the pages."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from geolib.files import write_whole

from .ledger import Ledger
from .notebook import PressError

GPU_LEDGER = "book/claims-gpu.json"  # where one was kept


@dataclass(frozen=True)
class DeviceLedger:
    """What a run on another device measured for each claim.

    Attributes:
        device: its name.
        profile: of the run, e.g. `full`.
        versions: of Python and torch.
        date: of the run, ISO.
        claims: by key: `shown`, `measured`, `bound` and `verdict`.
    """

    device: str
    profile: str
    versions: dict[str, str]
    date: str
    claims: dict[str, dict[str, Any]]

    @property
    def about(self) -> str:
        """One sentence about the run."""
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return (
            f"On {self.device}: profile {self.profile}, {self.date}, {versions}, "
            f"{len(self.claims)} claims."
        )


def save_device_ledger(ledger: Ledger, path: Path) -> DeviceLedger:
    """Store the rows of a ledger that were measured on a GPU, for the published page.

    Raises:
        PressError: none was, or several kinds of GPU were in use.
    """
    devices = sorted({r["device"] for r in ledger.rows} - {"cpu"})
    if len(devices) != 1:
        found = ", ".join(devices) or "a CPU only"
        raise PressError(
            f"keep: expected the run of profile {ledger.profile} to be on one kind of "
            f"GPU, got {found}; run `geolib run --profile {ledger.profile} --device "
            "cuda` first"
        )
    names = ("shown", "measured", "bound", "verdict")
    kept = DeviceLedger(
        devices[0],
        ledger.profile,
        {"Python": platform.python_version(), "torch": version("torch")},
        datetime.date.today().isoformat(),
        {
            r["key"]: {name: r[name] for name in names}
            for r in ledger.rows
            if r["device"] == devices[0]
        },
    )
    write_whole(path, json.dumps(asdict(kept), indent=1) + "\n")
    return kept


def load_device_ledger(path: Path) -> DeviceLedger | None:
    """The stored ledger of a GPU run; None where none is stored.

    Raises:
        PressError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return DeviceLedger(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise PressError(f"{path.name}: not a ledger that was kept ({error})") from None
