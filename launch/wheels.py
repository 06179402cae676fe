"""Which packages does a machine lack that has PyTorch, but no package index? Gathers the pure-Python ones as wheels.

    python launch/wheels.py FOLDER [--compiled] [--extra quantize]

`make wheels` runs it in an environment with the pinned requirements. Taken are the packages of the plain install, in the
versions installed here, and what builds this project itself. Left out are PyTorch with all that it alone brings, and packages
of compiled code, which belong to a platform and a Python: they are listed, or, with `--compiled`, gathered too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT, TORCH = "dsd-lightning", "torch"
BUILD = ("setuptools", "wheel")
"""What `pip install -e .` needs beside the packages that are installed."""


def needed(root: str, extras: Iterable[str] = ()) -> dict[str, Distribution]:
    """Return the installed packages that `root` needs, by name, but for PyTorch and what it alone needs."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = {(TORCH, "")}
    waiting = [(canonicalize_name(root), extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            package = found.setdefault(name, distribution(name))
        except PackageNotFoundError as error:
            raise SystemExit(f"{name} is not installed here: gather the wheels where it is (`make wheels`)") from error
        for requirement in map(Requirement, package.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                chosen = ("", *requirement.extras)
                waiting += [(canonicalize_name(requirement.name), each) for each in chosen]
    found.pop(canonicalize_name(root), None)
    return dict(sorted(found.items()))


def is_pure(package: Distribution) -> bool:
    """Return whether a package holds no compiled code, so that it runs on every platform."""
    return "-none-any" in (package.read_text("WHEEL") or "")


def main() -> None:
    """Gather the wheels, and say what was left out."""
    parser = argparse.ArgumentParser(prog="python launch/wheels.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compiled", action="store_true", help="for a machine of this platform and Python")
    parser.add_argument("--extra", action="append", default=[], help="an extra of setup.cfg, such as quantize")
    args = parser.parse_args()
    packages = needed(PROJECT, args.extra)
    taken = [f"{name}=={package.version}" for name, package in packages.items() if args.compiled or is_pure(package)]
    left = [] if args.compiled else [name for name, package in packages.items() if not is_pure(package)]
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-w", str(args.folder), *taken, *BUILD], check=True)
    wheels = list(args.folder.glob("*.whl"))
    size = sum(file.stat().st_size for file in wheels) / 1e6
    sys.stdout.write(f"{args.folder}: {len(wheels)} wheels, {size:.0f} MB. Beside them, {TORCH} must be there")
    sys.stdout.write(f", and of compiled code: {', '.join(left)}\n" if left else "\n")


if __name__ == "__main__":
    main()
