"""Libraries that print advice to programmers when they are imported are told not to."""

from __future__ import annotations

import logging
from typing import Any

from negawatt.errors import require

_TALKATIVE = ("torchao", "torch.utils._pytree", "accelerate")
"""torchao, which transformers imports where it finds it, tells which of its kernels for GPUs it lacks."""


def transformers(extra: str) -> Any:
    """The library, quiet: no progress bars and no advice on standard error.

    Raises:
        MissingDependency: it is not installed.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    library = require("transformers", extra=extra)
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library
