"""What a figure was measured on: processor, cores, versions; never a host or path."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("geometry-of-learning", "torch", "numpy", "scipy", "scikit-learn")


def machine() -> dict[str, str | int]:
    """Processor, number of cores this process may use, memory, system, GPU."""
    found: dict[str, str | int] = {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "memory_gb": memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": 1,
    }
    if (gpu := accelerator()) is not None:
        found["gpu"] = gpu
    return found


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def memory() -> int:
    """Main memory in whole gigabytes; 0 when the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (OSError, ValueError):
        return 0


def accelerator() -> str | None:
    """The name of the GPU in use, if torch sees one."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def versions() -> dict[str, str]:
    """Python and the packages every benchmark rests on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
