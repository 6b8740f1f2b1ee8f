"""Prints the folder of the torch to compile against; CMake runs it.

pip's isolated build hides the packages of the environment that it installs into, but not their folder. The kernels need
torch's headers alone, of any release from 2.10 on (LibTorch's stable ABI), so that torch is good enough.
"""

from __future__ import annotations

import importlib.util
import re
import site
import sys
import sysconfig
from pathlib import Path

LEAST = (2, 10)


def folders() -> list[Path]:
    """Where torch may be: what this interpreter imports, then what its environment holds."""
    spec = importlib.util.find_spec("torch")
    places = [Path(place) for place in (spec.submodule_search_locations or [] if spec else [])]
    sites = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    sites += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return places + [Path(place, "torch") for place in dict.fromkeys(sites)]


def release(folder: Path) -> tuple[int, int] | None:
    """The release of the torch in this folder, read and not imported; None where there is none."""
    version = folder / "version.py"
    found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text("utf-8")) if version.is_file() else None
    return (int(found[1]), int(found[2])) if found else None


def main() -> None:
    """Prints the first folder that holds a torch; exits with the line that mends it where none does."""
    mend = 'pip install "torch>=2.10" scikit-build-core cmake ninja && pip install --no-build-isolation .'
    for folder in folders():
        found = release(folder)
        if found is None:
            continue
        if found < LEAST:
            sys.exit(
                f"torch {found[0]}.{found[1]} is installed; the kernels compile against torch >= 2.10. Run:\n  {mend}"
            )
        print(folder)
        return
    sys.exit(
        "no torch was found to compile the kernels against. Install it first, then this package (in place of the dot "
        f"stands what you asked pip for):\n  {mend}\n"
        "or leave the compiled kernels out:\n"
        "  pip install --config-settings=wheel.cmake=false ."
    )


if __name__ == "__main__":
    main()
