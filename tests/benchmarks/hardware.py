"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def hardware() -> dict[str, str | int]:
    """Return the processor, its cores and the memory in GiB."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "processor": processor or platform.processor(),
        "cores": os.cpu_count() or 1,
        "memory_gib": memory_gib,
    }
