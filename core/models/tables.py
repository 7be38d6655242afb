"""Tables about models, from ``tables.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli

TABLES: dict[str, Any] = tomli.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
