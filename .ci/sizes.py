"""Lines of each package; fails where a file of the library is too long."""

import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("nl_jax", "pallas_kernels", "experiments", "tests")
LIBRARY, LONGEST = "nl_jax", 350


def main():
    """Prints a line per package."""
    for package in PACKAGES:
        lines = {
            str(path.relative_to(ROOT)): path.read_text().count("\n")
            for path in (ROOT / package).rglob("*.py")
        }
        largest = max(lines, key=lines.get)
        sys.stdout.write(
            f"{package:14} {sum(lines.values()):6} lines, {len(lines):3} files,"
            f" median {statistics.median(lines.values()):.0f},"
            f" largest {lines[largest]} ({largest})\n"
        )
        if package == LIBRARY:
            long = [name for name, n in lines.items() if n > LONGEST]
    if long:
        sys.exit(f"more than {LONGEST} lines: {', '.join(long)}")


if __name__ == "__main__":
    main()
