"""`Books`: which request owes what of a worker's joules; all of them and idle make the meter's whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from negawatt.energy import Energy, Provenance
from negawatt.engine.batching import Report
from negawatt.serve.price import CpuTimePrice, Price, Spent
from negawatt.serve.weights import PLAIN, Weights


class Joules:
    """A running sum of shares of energies, cheap enough to add to at every step."""

    __slots__ = ("_high_j", "_low_j", "_provenance", "_reason", "_value_j")

    def __init__(self) -> None:
        self._value_j = self._low_j = self._high_j = 0.0
        self._provenance, self._reason = Provenance.MEASURED, ""

    def add(self, energy: Energy, share: float) -> None:
        """Add a share of an energy; of a missing one, what is known of it, and the sum is missing too."""
        self._provenance = max(self._provenance, energy.provenance)
        self._reason = energy.reason or self._reason
        self._low_j += (energy.low_j or 0.0) * share
        if energy.value_j is not None and energy.high_j is not None:
            self._value_j += energy.value_j * share
            self._high_j += energy.high_j * share

    @property
    def energy(self) -> Energy:
        """The sum; shares of what was measured are derived."""
        if self._provenance is Provenance.MISSING:
            return Energy(None, self._low_j, None, Provenance.MISSING, self._reason)
        low_j, high_j = min(self._low_j, self._value_j), max(self._high_j, self._value_j)
        if self._value_j or high_j:
            worst = max(self._provenance, Provenance.DERIVED)
            return Energy(self._value_j, low_j, high_j, worst, self._reason)
        return Energy.zero()


@dataclass(slots=True)
class Account:
    """What one request owes so far.

    Attributes:
        prefill, decode: dynamic joules, by phase.
        idle: joules that the processors would have drawn anyway while they worked for it.
        cpu_s: CPU seconds of the worker.
    """

    prefill: Joules = field(default_factory=Joules)
    decode: Joules = field(default_factory=Joules)
    idle: Joules = field(default_factory=Joules)
    cpu_s: float = 0.0
    _prefill_due_s: float = 0.0
    _decode_due_s: float = 0.0

    def owe(self, phase: str, cpu_s: float) -> None:
        """Note CPU seconds whose joules are not known yet."""
        self.cpu_s += cpu_s
        if phase == "prefill":
            self._prefill_due_s += cpu_s
        else:
            self._decode_due_s += cpu_s

    def price(self, spent: Spent, cpu_s: float) -> None:
        """Turn what is due into joules: its part of an interval in which `cpu_s` were used in all."""
        prefill, decode = self._prefill_due_s / cpu_s, self._decode_due_s / cpu_s
        if prefill:
            self.prefill.add(spent.dynamic, prefill)
        if decode:
            self.decode.add(spent.dynamic, decode)
        if prefill or decode:
            self.idle.add(spent.idle, prefill + decode)
        self._prefill_due_s = self._decode_due_s = 0.0


class Books:
    """Shares out every step of one worker.

    Args:
        price: of its CPU seconds.

    Attributes:
        beside: account of what the worker spent on no request: loading, waking up, standing idle.
        weights: by which steps are shared.
    """

    def __init__(self, price: Price) -> None:
        self.weights: Weights = PLAIN
        self.beside = Account()
        self._price = price
        self._accounts: dict[int, Account] = {}
        self._due: dict[int, Account] = {}  # those that owe something of this interval, by identity
        self._interval_cpu_s = self._told_cpu_s = 0.0

    @property
    def boundary(self) -> str:
        """Where the joules are counted."""
        return self._price.boundary

    def __len__(self) -> int:
        """Jobs that are not closed."""
        return len(self._accounts)

    def open(self, job: int, account: Account) -> None:
        """From now on, what this job takes part in is owed by the account."""
        self._accounts[job] = account

    def close(self, jobs: Iterable[int]) -> None:
        """These jobs have ended; their account is priced to the last step."""
        self.settle()
        for job in jobs:
            self._accounts.pop(job, None)

    def step(self, report: Report) -> None:
        """Share out a step by the weights, except for what was spent on one sequence alone."""
        self._note(report.cpu_s)
        if not report.parts:
            self._owe(self.beside, "decode", report.cpu_s)
            return
        own_s = report.beside_cpu_s + sum(part.own_cpu_s for part in report.parts)
        known = min(1.0, report.cpu_s / own_s) if own_s else 1.0  # clocks of threads and processes may differ
        common_s = report.cpu_s - own_s * known
        if report.beside_cpu_s:
            self._owe(self.beside, "decode", report.beside_cpu_s * known)
        for part, share in zip(report.parts, self.weights.shares(report.parts), strict=True):
            account = self._accounts.get(part.job, self.beside)
            self._owe(account, part.phase, share * common_s + part.own_cpu_s * known)

    def idle(self, cpu_s: float) -> None:
        """Note what the worker spent on no sequence; closes the interval, so that no request pays for it."""
        self._note(cpu_s)
        self._owe(self.beside, "decode", cpu_s)
        self.settle()

    def rest(self, whole_cpu_s: float) -> Account:
        """What a worker that has ended had spent and not told of any more, of `whole_cpu_s` in all.

        No counter can be asked for a process that is gone, so its joules are those of the CPU-time model.
        """
        account, price = Account(), CpuTimePrice()
        cpu_s = max(0.0, whole_cpu_s - self._told_cpu_s)
        account.owe("decode", cpu_s)
        if cpu_s:
            account.price(price.since_last(cpu_s), cpu_s)
        return account

    def settle(self) -> None:
        """Read the price of everything since the last time, and turn what is due into joules."""
        spent = self._price.since_last(self._interval_cpu_s)
        if self._interval_cpu_s > 0:
            for account in self._due.values():
                account.price(spent, self._interval_cpu_s)
        else:  # joules without CPU time: nobody's work
            self.beside.decode.add(spent.dynamic, 1.0)
            self.beside.idle.add(spent.idle, 1.0)
        self._due.clear()
        self._interval_cpu_s = 0.0

    def _note(self, cpu_s: float) -> None:
        self._interval_cpu_s += cpu_s
        self._told_cpu_s += cpu_s

    def _owe(self, account: Account, phase: str, cpu_s: float) -> None:
        account.owe(phase, cpu_s)
        self._due[id(account)] = account
