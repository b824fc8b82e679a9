"""Limits hold as long as they are held, and whatever happens what was there before comes back."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limited_machine import kept, machine

from negawatt.errors import EngineError
from negawatt.limits.cpu import CPUFREQ, POWERCAP
from negawatt.limits.hold import check, hold, hold_in_turn
from negawatt.limits.journal import Change, Entry, Journal
from negawatt.limits.limits import Limits
from negawatt.limits.system import System, put
from negawatt.limits.turn import InForce, put_back
from negawatt.meter.process import descendants
from negawatt.testing.nvml import NvmlDouble

BOTH = Limits(60, 2000)
PACKAGE = f"{POWERCAP}/intel-rapl:0/constraint_0_power_limit_uw"
SECOND = f"{POWERCAP}/intel-rapl:1/constraint_0_power_limit_uw"
CLOCK = f"{CPUFREQ}/policy0/scaling_max_freq"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return machine(tmp_path / "root")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "limits" / "here.json")


# -- in order ----------------------------------------------------------------------------------------


def test_ceilings_are_lowered_and_come_back(root: Path, journal: Journal) -> None:
    before = kept(root)
    with hold(BOTH, System(root), journal) as held:
        found = {name: text for name, text in kept(root).items() if text != before[name]}
        assert found == {PACKAGE: "60000000\n", SECOND: "60000000\n", CLOCK: "2000000\n"}
        assert held.info["limits"][0] == "cpu/0 at most 60 W on average over 28 s (before: 165 W)"
        assert held.info["limits_window_s"] == pytest.approx(28, abs=0.1)
        entry = journal.read()
        assert entry is not None
        assert [(c.place, c.before) for c in entry.changes] == [
            (PACKAGE, 165_000_000), (SECOND, 120_000_000), (CLOCK, 4_800_000),
        ]  # fmt: skip
    assert kept(root) == before
    assert not journal.place.exists()
    held.release()  # a second time is harmless


def test_without_limits_nothing_is_touched(tmp_path: Path) -> None:
    with hold(Limits(), System(tmp_path / "nowhere")) as held:
        assert held.info == {}


def test_a_turn_is_held_beside_idle_engines_and_let_go(root: Path, journal: Journal) -> None:
    before = kept(root)
    with hold(Limits()):  # an engine that is open, without limits
        for _ in range(2):
            with hold_in_turn(BOTH, System(root), journal) as turn:
                assert turn.window_s == pytest.approx(28, abs=0.1)
                assert kept(root) != before
                for other in (Limits(), BOTH, Limits(70)):
                    with pytest.raises(
                        EngineError, match="another engine of this process runs with at most 60"
                    ):
                        hold(other, System(root), journal)
                with pytest.raises(EngineError, match="this process holds at most 60 W"):
                    hold_in_turn(Limits(70), System(root), journal)
            assert kept(root) == before
            turn.release()  # a second time is harmless
        with pytest.raises(EngineError, match="1 W are too few"):
            hold_in_turn(Limits(1), System(root), journal)
    with hold(BOTH, System(root), journal), pytest.raises(EngineError, match="holds at most 60 W"):
        hold_in_turn(BOTH, System(root), journal)
    assert kept(root) == before and not journal.place.exists()


def test_engines_of_a_process_share_the_same_limits_until_the_last_ends(root: Path, journal: Journal) -> None:
    before = kept(root)
    first = hold(BOTH, System(root), journal)
    second = hold(BOTH, System(root), journal)
    check(BOTH, System(root), journal)
    first.release()
    assert kept(root) != before
    second.release()
    assert kept(root) == before


@pytest.mark.parametrize("pair", [(BOTH, Limits()), (Limits(), BOTH), (BOTH, Limits(70))])
def test_engines_of_a_process_cannot_differ(
    root: Path, journal: Journal, pair: tuple[Limits, Limits]
) -> None:
    before = kept(root)
    with (
        hold(pair[0], System(root), journal),
        pytest.raises(EngineError, match="run one after the other"),
    ):
        hold(pair[1], System(root), journal)
    assert kept(root) == before


@pytest.mark.usefixtures("as_root")
def test_gpus_are_limited_and_come_back(tmp_path: Path, journal: Journal) -> None:
    nvml = NvmlDouble(2)
    nvml.power_limit_mw = [400_000, 300_000]
    (tmp_path / "sys").mkdir()
    with hold(Limits(250, 1200, "cuda"), System(tmp_path, nvml), journal):
        assert nvml.power_limit_mw == [250_000, 250_000]
        assert nvml.locked_mhz == [(345, 1200)] * 2
    assert nvml.power_limit_mw == [400_000, 300_000]
    assert nvml.locked_mhz == [None, None]


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("negawatt.limits.gpu.os.geteuid", lambda: 0)


@pytest.mark.usefixtures("as_root")
def test_a_driver_that_refuses_root_is_quoted_and_nothing_is_left(tmp_path: Path, journal: Journal) -> None:
    nvml = NvmlDouble(1)
    nvml.may_set = False
    (tmp_path / "sys").mkdir()
    with pytest.raises(EngineError, match=r"NVML: .*; run as root"):
        hold(Limits(250, 1200, "cuda"), System(tmp_path, nvml), journal)
    assert nvml.power_limit_mw == [400_000] and not journal.place.exists()


# -- whatever goes wrong -----------------------------------------------------------------------------


def refuse(file: Path, value: int) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def lock(file: Path, value: int) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def clamp(file: Path, value: int) -> None:
    put(file, 2 * value)


def interrupt(file: Path, value: int) -> None:
    raise KeyboardInterrupt


def interrupt_after(file: Path, value: int) -> None:
    put(file, value)
    raise KeyboardInterrupt


FAULTS: tuple[Callable[[Path, int], None], ...] = (refuse, lock, clamp, interrupt, interrupt_after)


@settings(max_examples=25)
@given(
    at=st.integers(0, 6), fault=st.sampled_from(FAULTS), limits=st.sampled_from([BOTH, Limits(60)]),
    off=st.booleans(),
)  # fmt: skip
def test_what_was_there_comes_back_whichever_write_fails(
    at: int, fault: Callable[[Path, int], None], limits: Limits, off: bool
) -> None:
    writes = 0

    def once(file: Path, value: int) -> None:
        nonlocal writes
        writes += 1
        (fault if writes == at + 1 else put)(file, value)

    with tempfile.TemporaryDirectory() as folder:
        root, journal = machine(Path(folder) / "root"), Journal(Path(folder) / "limits" / "here.json")
        if off:
            put(root / POWERCAP / "intel-rapl:1/enabled", 0)
        before, system = kept(root), System(root, put=once)
        try:
            with hold(limits, system, journal):
                assert kept(root) != before
        except EngineError as exc:
            if "do it by hand" in str(exc):  # it was the write that puts back: the next process does it
                assert put_back(system, journal)
        except KeyboardInterrupt:
            pass
        assert kept(root) == before
        assert not journal.place.exists()
        check(limits, System(root), journal)  # nothing is left locked
        hold(Limits()).release()  # nor registered


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (refuse, f"{PACKAGE} refuses 60000000: Invalid argument"),
        (clamp, f"{PACKAGE} was set to 60000000, and the system made 120000000 of it; ask for a limit that"),
        (lock, f"{PACKAGE} refuses 60000000"),
    ],
)
def test_a_refusal_is_one_sentence(
    root: Path, journal: Journal, fault: Callable[..., None], words: str
) -> None:
    before = kept(root)
    with pytest.raises(EngineError, match=words):
        hold(Limits(60), System(root, put=_first(fault)), journal)
    assert kept(root) == before and not journal.place.exists()


def _first(fault: Callable[[Path, int], None]) -> Callable[[Path, int], None]:
    """A system whose first write has a fault."""
    acts = iter([fault])
    return lambda file, value: next(acts, put)(file, value)


def test_rounding_is_no_refusal(root: Path, journal: Journal) -> None:
    def in_eighths(file: Path, value: int) -> None:
        put(file, value // 125_000 * 125_000 if "power" in file.name else value)

    with hold(Limits(60.2), System(root, put=in_eighths), journal):
        assert (root / PACKAGE).read_text() == "60125000\n"


# -- other processes ---------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from negawatt.limits.hold import hold
from negawatt.limits.journal import Journal
from negawatt.limits.limits import Limits
from negawatt.limits.system import System
with hold(Limits(60, 2000), System(Path(sys.argv[1])), Journal(Path(sys.argv[2]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(root: Path, journal: Journal) -> Iterator[subprocess.Popen[str]]:
    """Another process that has set limits; it ends when its input does."""
    command = [sys.executable, "-c", HOLDER, str(root), str(journal.place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def within(seconds: float, what: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_nothing_lowered(
    root: Path, journal: Journal, number: signal.Signals
) -> None:
    before = kept(root)
    with holder(root, journal) as process:
        assert kept(root) != before
        process.send_signal(number)
        assert within(30, lambda: not journal.place.exists())
    assert kept(root) == before
    assert put_back(System(root), journal) == []


def test_ctrl_c_leaves_nothing_lowered(root: Path, journal: Journal) -> None:
    before = kept(root)
    with holder(root, journal) as process:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert kept(root) == before and not journal.place.exists()


def killed_with_its_keeper(root: Path, journal: Journal) -> int:
    with holder(root, journal) as process:
        (keeper,) = descendants(process.pid)
        os.kill(keeper, signal.SIGKILL)
        process.kill()
    return process.pid


def test_what_nobody_could_put_back_the_next_who_looks_does(root: Path, journal: Journal) -> None:
    before = kept(root)
    pid = killed_with_its_keeper(root, journal)
    assert kept(root) != before
    (told,) = put_back(System(root), journal)
    assert told.startswith(f"process {pid} ended without putting back") and PACKAGE in told
    assert kept(root) == before
    assert put_back(System(root), journal) == []


def test_the_next_limits_start_from_what_was_there_before_the_dead_process(
    root: Path, journal: Journal
) -> None:
    before = kept(root)
    killed_with_its_keeper(root, journal)
    with hold(Limits(100), System(root), journal):
        assert (root / PACKAGE).read_text() == "100000000\n"
        assert (root / CLOCK).read_text() == "4800000\n"
    assert kept(root) == before


def test_asking_whether_limits_can_be_held_puts_back_first(root: Path, journal: Journal) -> None:
    before = kept(root)
    killed_with_its_keeper(root, journal)
    check(BOTH, System(root), journal)  # had it not been put back, they would lower nothing
    assert kept(root) == before


def test_a_second_process_is_refused_and_disturbs_nothing(
    root: Path, journal: Journal, tmp_path: Path
) -> None:
    before = kept(root)
    with holder(root, journal) as process:
        lowered = kept(root)
        for act in (hold, check):
            with pytest.raises(EngineError, match=f"process {process.pid} has set a power cap or clock"):
                act(Limits(100), System(root), journal)
        with pytest.raises(InForce):
            put_back(System(root), journal)
        with pytest.raises(InForce, match="another process has set"):  # whose home is elsewhere
            hold(Limits(100), System(root), Journal(tmp_path / "other.json"))
        assert kept(root) == lowered
        process.communicate("", 30)
    assert kept(root) == before and not journal.place.exists()


def test_a_forked_child_puts_nothing_back(root: Path, journal: Journal) -> None:
    held = hold(BOTH, System(root), journal)
    lowered = kept(root)
    child = os.fork()
    if child == 0:
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert kept(root) == lowered
    held.release()
    assert (root / PACKAGE).read_text() == "165000000\n"


# -- the journal -------------------------------------------------------------------------------------


def entry(**changes: object) -> Entry:
    own = Entry.of_this_process([Change(PACKAGE, 1_000_000, 2_000_000)])
    return replace(own, **changes)  # type: ignore[arg-type]


def test_a_process_of_the_same_number_is_not_the_one_that_was(root: Path, journal: Journal) -> None:
    journal.write(entry(pid=os.getppid(), started=1))
    assert put_back(System(root), journal)
    assert (root / PACKAGE).read_text() == "1000000\n"


def test_a_process_that_runs_still_is_left_alone(root: Path, journal: Journal) -> None:
    from negawatt.limits.journal import started

    journal.write(entry(pid=os.getppid(), started=started(os.getppid())))
    with pytest.raises(InForce, match=f"process {os.getppid()}"):
        put_back(System(root), journal)
    assert (root / PACKAGE).read_text() == "165000000\n"


def test_after_a_restart_of_the_machine_there_is_nothing_to_put_back(root: Path, journal: Journal) -> None:
    journal.write(entry(boot="another"))
    assert put_back(System(root), journal) == []
    assert (root / PACKAGE).read_text() == "165000000\n" and not journal.place.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"boot": "x"}', json.dumps({**asdict(entry()), "changes": [{"place": 1}]})]
)
def test_a_damaged_journal_is_a_sentence(root: Path, journal: Journal, text: str) -> None:
    journal.place.parent.mkdir()
    journal.place.write_text(text)
    with pytest.raises(EngineError, match="look at them by hand and remove it"):
        hold(BOTH, System(root), journal)
    assert (root / PACKAGE).read_text() == "165000000\n"


def test_a_journal_cannot_make_anything_else_be_written(root: Path, journal: Journal) -> None:
    (root / "secret").write_text("mine\n")
    journal.write(entry(pid=2**22, changes=(Change("secret", 1, 2),)))
    with pytest.raises(EngineError, match="is no place of a limit"):
        put_back(System(root), journal)
    assert (root / "secret").read_text() == "mine\n"
