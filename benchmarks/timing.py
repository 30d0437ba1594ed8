"""What the benchmarks of cost share: interleaved medians, peak memory, and the facts a result is read with."""

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import torch


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, dict]:
    """Run every way in turn, after one round for warm-up; return the medians of its wall and CPU seconds.

    What else the machine does slows all of them alike, so that ratios hold where seconds do not.
    """
    wall, processor = ({name: [] for name in ways} for _ in range(2))
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                wall[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - began_cpu)
    return {
        name: {"seconds": statistics.median(wall[name]), "cpu_seconds": statistics.median(processor[name])}
        for name in ways
    }


def peak_memory(step: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak memory of one step above what was held before it, in MiB, where the system tells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and reset.exists()):
        return None

    def read(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    ctypes.CDLL(None).malloc_trim(0)  # hands freed memory back, so that using it again counts
    reset.write_text("5")  # sets the high-water mark to what is resident now
    held = read("VmRSS")
    step()
    return (read("VmHWM") - held) / 1024


def facts(device: torch.device) -> dict:
    """Return the device, its threads and the versions behind a result."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions}
