"""What a run was made with: versions, revision, hardware."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stillhouse.core.machine import machine

PACKAGES = (
    "stillhouse",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "numpy",
    "onnxruntime",
)


def _revision() -> str | None:
    """The git revision of the working directory, if it is a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def manifest(**facts: object) -> dict[str, object]:
    """Versions, hardware and whatever facts the run adds, for manifest.json."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    hardware = {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}
    found = {"versions": versions, "git_revision": _revision()}
    return {**found, "hardware": {**hardware, **machine().facts}, **facts}
