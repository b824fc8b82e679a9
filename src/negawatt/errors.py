"""The exceptions Negawatt raises, as one tree.

::

    NegawattError                 anything a user can mend; prints as one sentence, exit code 1
    ├── UsageError                the call itself is wrong (an option, a name, a range); exit code 2
    ├── MissingDependency         an optional library is not installed
    ├── SensorError               a sensor cannot be read (absent, denied, dead)
    ├── ArtifactError             a model on disk is missing, damaged or of an unknown kind
    │   ├── IntegrityError        bytes do not match the promised hash or length
    │   └── ConsentError          a licence must be accepted first
    ├── DownloadError             a package could not be fetched
    ├── WorkloadError             a workload file breaks its format
    ├── EngineError               an engine refuses or fails
    │   ├── UnsupportedSetting    the engine has no such setting
    │   └── WorkerDied            the worker process ended, hung, or ran out of memory
    ├── RunError                  a results folder is damaged, newer than this version, or in use
    └── Infeasible                nothing satisfies the constraints

Every message says what was expected, what came, and what to do.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class NegawattError(Exception):
    """Base of every error that has a sentence for the user."""

    exit_code = 1


class UsageError(NegawattError):
    """The call is wrong: an unknown name, a value out of range, options that exclude each other."""

    exit_code = 2


class MissingDependency(NegawattError):
    """An optional library is not installed; the message names the extra that brings it."""


class SensorError(NegawattError):
    """A sensor cannot be read. ``remedy`` says what the user can do about it, or is empty."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class ArtifactError(NegawattError):
    """A model on disk is missing, damaged, or of a kind nothing here can read."""


class IntegrityError(ArtifactError):
    """Bytes on disk or from the network do not match the promised hash or length."""


class ConsentError(ArtifactError):
    """The licence asks for consent that has not been given."""


class DownloadError(NegawattError):
    """A package could not be fetched from its registry."""


class WorkloadError(NegawattError):
    """A workload file breaks its format; the message names file, line and item."""


class EngineError(NegawattError):
    """An engine refuses a request or fails while running it."""


class UnsupportedSetting(EngineError):
    """The engine has no such setting; the message names the engine, the setting and what it has."""


class WorkerDied(EngineError):
    """A worker process ended unexpectedly, hung beyond its deadline, or was killed for memory."""


class RunError(NegawattError):
    """A results folder is damaged, written by a newer version, or in use by another process."""


class Infeasible(NegawattError):
    """Nothing tried satisfies the constraints; the message says which one binds and how closely."""


def require(module: str, *, extra: str | None) -> ModuleType:
    """Import an optional library, or say in one sentence which extra brings it.

    Args:
        module: dotted name of the module to import.
        extra: the extra of the ``negawatt`` distribution that installs it; None where users bring
            the library themselves.

    Raises:
        MissingDependency: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] != module.split(".")[0]:
            raise
        raise _missing(module.split(".")[0], extra) from exc


def installed_version(distribution: str, *, extra: str) -> str:
    """Version of an optional library, without importing it.

    Raises:
        MissingDependency: it is not installed.
    """
    from importlib import metadata  # slow to import, and needed here alone

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as exc:
        raise _missing(distribution, extra) from exc


def _missing(library: str, extra: str | None) -> MissingDependency:
    if extra is None:
        return MissingDependency(f"{library} is not installed; pip install {library} brings it")
    return MissingDependency(f"{library} is not installed; pip install 'negawatt[{extra}]' brings it")
