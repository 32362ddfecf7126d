"""Which card, driver and packages, and how fast the card is at what everything else is made of."""

import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch

from salmonn.doctor.findings import OK
from salmonn.doctor.hardware import nvidia_driver
from salmonn.doctor.packages import check_packages
from util.gpu.rows import Row, Setup, peak_of, row, seconds_of

COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rows(setup: Setup) -> Iterator[Row]:
    """Versions, packages that are not as declared, products and copies per second."""
    if setup.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield row("card", properties.name)
        yield row("memory of it", properties.total_memory / 1e9, "GB")
        yield row("driver", nvidia_driver())
    versions = platform.python_version(), torch.__version__, torch.version.cuda, version_of("transformers")
    yield row("python, torch, CUDA, transformers", ", ".join(map(str, versions)))
    findings = list(check_packages())
    for finding in findings:
        if finding.state != OK:
            yield row(f"package {finding.name}", finding.says)
    yield row("packages", "as tested" if all(finding.state == OK for finding in findings) else "see above")
    where = torch.device(setup.device)
    for dtype in DTYPES:
        what = f"products of large matrices, {dtype}".replace("torch.", "")
        yield row(what, peak_of(where, dtype) / 1e12, "TFLOP/s")
    source = torch.randint(0, 255, (COPY_BYTES[setup.device],), dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    copied = seconds_of(lambda: target.copy_(source), where)
    yield row("copies within the device's memory, read and written", 2 * len(source) / copied / 1e9, "GB/s")


def version_of(package: str) -> str:
    """Of a package that may be missing."""
    with suppress(PackageNotFoundError):
        return version(package)
    return "none"
