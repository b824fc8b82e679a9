"""Fetching a model from the Hugging Face hub: only safetensors, JSON and tokenizer files."""

from __future__ import annotations

import re
from pathlib import Path

from negawatt.catalog.http import Progress
from negawatt.errors import DownloadError, UsageError, require
from negawatt.home import home

ALLOWED = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "vocab.txt", "merges.txt"]
"""No pickles, no Python: remote code is never run."""


def fetch(ref: str, *, progress: Progress | None = None) -> Path:
    """Fetch ``hf:organisation/name`` or ``hf:organisation/name@revision`` and return its folder.

    The hub library keeps what was fetched and resumes what was interrupted.

    Raises:
        UsageError: the reference has another form.
        MissingDependency: huggingface_hub is not installed.
        DownloadError: no network, no such model, or no access to it.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", ref)
    if not match:
        raise UsageError(f"{ref!r} is not hf:organisation/name or hf:organisation/name@revision")
    name, revision = match.groups()
    huggingface_hub = require("huggingface_hub", extra="hub")
    if progress:
        progress(0, None, f"fetching {name} from the hub")
    try:
        folder: str = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            local_dir=home() / "models" / f"hf--{name.replace('/', '--')}" / (revision or "main"),
            allow_patterns=ALLOWED,
            etag_timeout=15,
        )
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise DownloadError(f"cannot fetch {name} from the hub: {reason}") from exc
    return Path(folder)
