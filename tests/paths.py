"""Where the tests' data lies."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
PARITY = DATA / "parity"
BRIDGE = DATA / "bridge_widowx"
