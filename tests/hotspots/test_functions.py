"""Functions by sampled CPU time, in this process and in commands, run as people run them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
import venv
from collections import Counter
from pathlib import Path

import pytest

from negawatt import NegawattError, hotspots
from negawatt.hotspots import Hotspots, by_function, of_command

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()", "hotspots"]
INJECT = Path(hotspots.__file__).with_name("inject")
SCRIPT = """
import sys, time

def burn(cpu_s):
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        sum(range(500))

def small():
    burn(0.15)

def large():
    burn(0.45)
    time.sleep(0.3)  # costs no CPU time

def main():
    small()
    large()

"""


def burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        sum(range(500))


def small() -> None:
    burn(0.1)


def large() -> None:
    burn(0.3)
    time.sleep(0.2)


def inclusive(found: Hotspots) -> dict[str, float]:
    """CPU seconds by name; functions of one name, as ``main`` of ``site`` and of a script, are added up."""
    used: Counter[str] = Counter()
    for spot in found.flat():
        used[spot.name] += spot.cpu_s
    return used


def assert_whole(found: Hotspots) -> None:
    parts_j = math.fsum(spot.self_energy.value_j or 0.0 for spot in found.whole.walk())
    assert parts_j == pytest.approx(found.measurement.energy.value_j, rel=1e-9)
    assert found.whole.cpu_s == pytest.approx(found.measurement.cpu_s, rel=1e-9)


def script(folder: Path, end: str) -> str:
    path = folder / "job.py"
    path.write_text(SCRIPT + end, "utf-8")
    return str(path)


def test_functions_are_charged_what_they_used_and_waiting_is_free() -> None:
    with by_function() as looked:
        with looked.stage("first"):
            small()
        with looked.stage("second"):
            large()
    found = looked.hotspots
    used = inclusive(found)
    assert used["small"] == pytest.approx(0.1, abs=0.03)
    assert used["large"] == pytest.approx(0.3, abs=0.05)
    assert used["first"] == pytest.approx(0.1, abs=0.03)
    assert used["second"] == pytest.approx(0.3, abs=0.05)
    assert_whole(found)
    assert found.samples is not None
    assert found.samples > 30
    assert [stage.name for stage in found.measurement.stages] == ["first", "second"]


def test_stages_that_a_command_names_by_the_meter_are_its_parts(tmp_path: Path) -> None:
    end = (
        "from negawatt import Meter\n"
        "with Meter() as meter:\n"
        "    with meter.stage('train'):\n"
        "        large()\n"
        "        with meter.stage('evaluate'):\n"
        "            small()\n"
    )
    _, found = of_command([sys.executable, script(tmp_path, end)])
    train = next(spot for spot in found.whole.walk() if spot.name == "train")
    evaluate = next(spot for spot in train.inside if spot.name == "evaluate")
    assert (train.kind, evaluate.kind) == ("stage", "stage")
    assert evaluate.cpu_s == pytest.approx(0.15, abs=0.04)
    assert train.cpu_s == pytest.approx(0.6, abs=0.08)
    assert_whole(found)


def test_threads_are_sampled_each_with_its_own_time() -> None:
    with by_function() as looked:
        threads = [threading.Thread(target=target) for target in (small, large)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    used = inclusive(looked.hotspots)
    assert used["small"] == pytest.approx(0.1, abs=0.05)
    assert used["large"] == pytest.approx(0.3, abs=0.06)
    assert_whole(looked.hotspots)


def test_helper_threads_of_a_library_go_to_the_function_that_called_it() -> None:
    torch = pytest.importorskip("torch")

    def multiply() -> None:
        a = torch.rand(700, 700)
        end = time.process_time() + 0.3
        while time.process_time() < end:
            a @ a

    with by_function() as looked:
        multiply()
    used = inclusive(looked.hotspots)
    assert (
        used[
            ["test_helper_threads_of_a_library_go_to_the_function_that_called_it", "<locals>", "multiply"][-1]
        ]
        >= 0.28
    )
    assert_whole(looked.hotspots)


def test_hotspots_are_not_there_before_the_block_is_left() -> None:
    with by_function() as looked, pytest.raises(NegawattError, match="once the block has been left"):
        _ = looked.hotspots


def test_a_command_is_sampled_without_knowing_it(tmp_path: Path) -> None:
    code, found = of_command([sys.executable, script(tmp_path, "main()\nsys.exit(7)")])
    assert code == 7
    used = inclusive(found)
    assert used["small"] == pytest.approx(0.15, abs=0.04)
    assert used["large"] == pytest.approx(0.45, abs=0.07)
    assert used["main"] == pytest.approx(0.6, abs=0.08)
    assert used["starting Python"] > 0.01
    assert_whole(found)


def test_children_are_sampled_however_they_are_made(tmp_path: Path) -> None:
    end = (
        "if __name__ == '__main__':\n"
        "    import multiprocessing, os, subprocess\n"
        "    for way in ('fork', 'spawn'):\n"
        "        child = multiprocessing.get_context(way).Process(target=small)\n"
        "        child.start(); child.join()\n"
        "    here = os.path.dirname(__file__)\n"
        "    subprocess.run([sys.executable, '-c', 'import job; job.large()'], cwd=here)\n"
    )
    _, found = of_command([sys.executable, script(tmp_path, end)])
    used = inclusive(found)
    assert used["small"] == pytest.approx(0.3, abs=0.08)
    assert used["large"] == pytest.approx(0.45, abs=0.08)
    assert any("Python processes" in note for note in found.notes)
    assert_whole(found)


def test_what_is_no_python_is_a_part_of_its_own(tmp_path: Path) -> None:
    code, found = of_command(["sh", "-c", "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"])
    assert code == 0
    assert found.flat()[0].name == "not sampled"
    assert "no process was sampled" in found.notes[0]
    assert_whole(found)


def test_a_process_that_is_killed_is_not_sampled_but_counted(tmp_path: Path) -> None:
    end = "burn(0.2)\nimport os; os.kill(os.getpid(), 9)"
    code, found = of_command([sys.executable, script(tmp_path, end)])
    assert code == 137
    assert inclusive(found)["not sampled"] >= 0.2
    assert_whole(found)


def test_an_environment_without_us_is_sampled_and_finds_nothing_of_ours(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    end = (
        "main()\n"
        "import importlib.util as u\n"
        "print([name for name in ('numpy', 'rich') if u.find_spec(name)], file=open('found', 'w'))"
    )
    job = script(tmp_path, end)
    _, found = of_command(["env", "-C", str(tmp_path), str(tmp_path / "venv/bin/python"), job])
    assert inclusive(found)["large"] == pytest.approx(0.45, abs=0.07)
    assert (tmp_path / "found").read_text() == "[]\n"


def test_a_python_that_cannot_be_sampled_runs_on_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "pyinstrument"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('made for another Python')", "utf-8")
    job = f"import sys; sys.path.remove({str(tmp_path)!r}); print('fine')"
    command = ["env", f"PYTHONPATH={INJECT}:{tmp_path}", sys.executable, "-c", job]
    done = subprocess.run([*NEGAWATT, "--", *command], capture_output=True, text=True)
    assert done.stdout == "fine\n"
    assert "no process was sampled" in done.stderr
    assert "sitecustomize" not in done.stderr


def test_the_environments_own_sitecustomize_is_not_displaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.customised = 'yes'", "utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2] / 'src'}")
    done = subprocess.run(
        [*NEGAWATT, "--", sys.executable, "-c", "print(customised)"], capture_output=True, text=True
    )
    assert done.stdout == "yes\n"


def test_the_command_prints_one_document_and_writes_one_page(tmp_path: Path) -> None:
    page = tmp_path / "flame.html"
    arguments = [
        "--json",
        "-o",
        str(page),
        "--",
        sys.executable,
        script(tmp_path, "main()\nprint('own words')"),
    ]
    done = subprocess.run([*NEGAWATT, *arguments], capture_output=True, text=True)
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == 0
    assert done.stderr == "own words\n"
    assert document["energy"]["provenance"] in ("measured", "derived", "estimated")
    assert {"whole", "flat", "samples", "looking_cpu_s", "cpu_s"} <= document.keys()
    assert "large" in page.read_text("utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["flame.html", "job.py"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--model", "m", "--", "true"], ["--prompt", "x", "--", "true"], ["--model", "m", "--new", "0"]],
)
def test_wrong_usage_gets_a_sentence(arguments: list[str]) -> None:
    done = subprocess.run([*NEGAWATT, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_command_that_is_not_there_gets_the_shells_code() -> None:
    done = subprocess.run([*NEGAWATT, "--", "no-such-command-anywhere"], capture_output=True, text=True)
    assert done.returncode == 127
    assert "no command" in done.stderr
