"""Print pip constraints that hold every dependency of macpo at its lower bound.

python tools/lowest.py                     # torch==2.11, transformers==5.17, ...
python tools/lowest.py --torch 2.13.0      # where another torch is there or is smaller to get
"""

from __future__ import annotations

import argparse
from importlib.metadata import requires

from packaging.requirements import Requirement


def main() -> None:
    """Print one constraint a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--torch", metavar="VERSION", help="take this torch instead")
    args = parser.parse_args()
    needed = [Requirement(line) for line in requires("macpo") or ()]
    bounds = {each.name: lower_bound(each) for each in needed if each.marker is None}
    if args.torch:
        bounds["torch"] = args.torch
    for name, version in bounds.items():
        print(f"{name}=={version}")


def lower_bound(requirement: Requirement) -> str:
    """Return the version in `name>=version`, which every dependency has."""
    (found,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return found


if __name__ == "__main__":
    main()
