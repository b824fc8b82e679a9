"""Stages that a measured command names itself, from shell scripts and from Python."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.meter.accumulate import Total
from negawatt.meter.markers import VARIABLE, Markers, marked
from negawatt.meter.sensor import Counter
from negawatt.meter.stages import Ledger

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()"]
SPIN = "for i in $(seq 60000); do :; done\n"


def measured(script: str) -> tuple[dict[str, object], str]:
    done = subprocess.run(
        [*NEGAWATT, "measure", "--json", "--", "bash", "-c", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    check_sums(document)
    return document, done.stderr


def check_sums(document: dict[str, object]) -> None:
    stages = document["stages"]
    assert isinstance(stages, list)
    whole = document["energy"]["value_j"]  # type: ignore[index]
    outside = document["outside_stages"]["value_j"]  # type: ignore[index]
    assert outside + sum(s["self_energy"]["value_j"] for s in stages) == pytest.approx(whole, rel=1e-9)
    outermost = sum(s["energy"]["value_j"] for s in stages if s["parent"] is None)
    assert outside + outermost == pytest.approx(whole, rel=1e-9)
    assert document["outside_stages"]["low_j"] >= -1e-9  # type: ignore[index,operator]


def test_a_shell_script_names_its_stages_and_they_nest() -> None:
    say = f'echo "$1" >> "${VARIABLE}"'
    document, said = measured(
        f"say() {{ {say}; }}\n{SPIN}say 'start train'\n{SPIN}say 'start epoch 1'\n{SPIN}{SPIN}"
        "say 'stop epoch 1'\nsay 'stop train'\nsleep 0.05\nsay 'start evaluate'\nsay 'stop evaluate'\n"
    )
    assert said == ""
    assert document["warnings"] == [w for w in document["warnings"] if "stage" not in w]  # type: ignore[attr-defined]
    stages = {s["name"]: s for s in document["stages"]}  # type: ignore[attr-defined]
    assert list(stages) == ["train", "epoch 1", "evaluate"]
    assert [s["parent"] for s in stages.values()] == [None, 0, None]
    assert 0 < stages["epoch 1"]["energy"]["value_j"] < stages["train"]["energy"]["value_j"]
    assert stages["evaluate"]["cpu_s"] < 0.05


def test_a_python_program_names_its_stages() -> None:
    code = (
        "import time\nfrom negawatt.meter import marked\n"
        "with marked('warm'):\n    end = time.process_time() + 0.1\n"
        "    while time.process_time() < end: pass\n"
    )
    document, _ = measured(f'{sys.executable} -c "{code}"')
    [stage] = document["stages"]  # type: ignore[misc]
    assert stage["name"] == "warm"
    assert stage["cpu_s"] == pytest.approx(0.1, abs=0.06)


def test_lines_that_are_none_are_ignored_with_one_warning() -> None:
    document, _ = measured(f"printf 'start\\nbegin x\\nstop y\\n\\xff\\xfe\\nstart ok' >> ${VARIABLE}")
    said = [w for w in document["warnings"] if "stages ignored" in w]  # type: ignore[attr-defined]
    assert said == [
        "4 lines about stages ignored, the first: expected 'start NAME' or 'stop NAME', not 'start'"
    ]
    assert [s["name"] for s in document["stages"]] == ["ok"]  # type: ignore[attr-defined]  # torn, and open
    assert any("stage ok was still open" in w for w in document["warnings"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "harm",
    [
        f'rm "${VARIABLE}"; echo "start a" >> "${VARIABLE}"',
        f'head -c 3000000 /dev/zero >> "${VARIABLE}"',
        f'> "${VARIABLE}"',
        f'rm -r "$(dirname "${VARIABLE}")"',
    ],
)
def test_whatever_happens_to_the_file_the_command_runs_through(harm: str) -> None:
    document, _ = measured(f"{harm}; true")
    assert document["exit_code"] == 0


def test_the_file_is_gone_afterwards() -> None:
    done = subprocess.run(
        [*NEGAWATT, "measure", "--quiet", "--", "bash", "-c", f"echo ${VARIABLE}"],
        capture_output=True,
        text=True,
    )
    path = Path(done.stdout.strip())
    assert path.name == "stages"
    assert not path.parent.exists()


def test_outside_of_a_measurement_marks_do_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with marked("nothing"):
        pass
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "file"))
    with marked("nothing"):
        pass
    assert list(tmp_path.iterdir()) == []


class Clock:
    """CPU time and joules that advance by hand."""

    def __init__(self) -> None:
        self.cpu_s = self.joules = 0.0

    def totals(self) -> dict[str, Total]:
        return {"gpu/0": Total(0.0, self.joules, self.joules, self.joules, 0.0, 0, Counter(self.joules))}


def shares(lines: list[tuple[str, float]]) -> dict[str, float]:
    """Joules of every stage itself, for lines and the joules that flow after each of them."""
    from negawatt.energy import Energy

    clock = Clock()
    ledger = Ledger(lambda: clock.cpu_s, clock.totals, 0.0, 0.0, clock.totals())
    markers = Markers(lambda: ledger)
    os.write(markers._ring, b".")
    markers._thread.join()
    with open(markers.environment[VARIABLE], "ab", buffering=0) as file:
        for line, joules in lines:
            file.write(line.encode() + b"\n")
            markers._read()
            clock.joules += joules
            clock.cpu_s += joules
    markers.finish()
    ledger.finish()
    whole = sum(joules for _, joules in lines)
    found = ledger.stages({"gpu/0": Energy.measured(whole)}, {}, 1.0)
    assert all(s.parent is None or s.parent < i for i, s in enumerate(found))
    return {f"{i}:{s.name}": s.self_energy.value_j or 0.0 for i, s in enumerate(found)}


def test_stages_that_overlap_share_the_time_they_overlap_in() -> None:
    lines = [("start a", 10.0), ("start b", 8.0), ("stop a", 4.0), ("stop b", 1.0)]
    assert shares(lines) == {"0:a": pytest.approx(14), "1:b": pytest.approx(8)}


@given(
    st.lists(
        st.tuples(
            st.tuples(st.sampled_from(["start", "stop", "halt"]), st.sampled_from("abc")).map(" ".join),
            st.floats(0, 100),
        ),
        max_size=20,
    )
)
def test_any_lines_at_all_add_up(lines: list[tuple[str, float]]) -> None:
    """Stages get what flowed while any was open, to one part in 10⁹."""
    opened: list[str] = []
    inside = []
    for line, joules in lines:
        word, name = line.split()
        if word == "start":
            opened.append(name)
        elif word == "stop" and name in opened:
            opened.remove(name)
        if opened:
            inside.append(joules)
    assert math.fsum(shares(lines).values()) == pytest.approx(math.fsum(inside), rel=1e-9, abs=1e-9)
