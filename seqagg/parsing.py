"""JSON of files that anybody may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Do what `json.loads` does, with a ValueError for what is nested too deep as well."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("too many lists and objects within each other") from None
