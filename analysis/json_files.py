"""JSON files as they are met: read, or said in one line to be none.

Takes a path; gives what it holds. Knows not what that means.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """What a JSON file holds. ValueError with one line for what is none, or is nested deeper than Python reads;
    OSError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error
