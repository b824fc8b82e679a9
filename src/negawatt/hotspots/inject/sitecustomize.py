"""Imported by every Python that starts with this folder on its path: sample it until it ends.

``negawatt hotspots -- COMMAND`` puts the folder there. It takes nobody's place: the environment's own
``sitecustomize``, where there is one, is imported afterwards. A Python that this cannot be imported
into (another version, say) runs on unsampled, and the report says how much that was.
"""

import contextlib
import importlib
import os
import sys


def _start() -> None:
    path = list(sys.path)
    sys.path.extend(os.environ.get("NEGAWATT_HOTSPOTS_PATH", "").split(os.pathsep))
    with contextlib.suppress(Exception):  # the program that starts here is not ours: it runs on unsampled
        from negawatt.hotspots.process import sample_this_process

        sample_this_process()
    sys.path[:] = path  # what else lies there is not for the program to find


def _import_the_next() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    path = list(sys.path)
    sys.path[:] = [p for p in path if os.path.abspath(p or ".") != here]
    ours = sys.modules.pop("sitecustomize")
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as exc:
        if exc.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours
    finally:
        sys.path[:] = path


if "NEGAWATT_HOTSPOTS" in os.environ:
    _start()
_import_the_next()
