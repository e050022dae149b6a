"""benchmarks/gpu.py end to end on a CPU, tiny: pytest -n0 tests/thorough/test_gpu_benchmark.py"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


def test_all_that_is_measured_on_a_gpu_runs_on_a_cpu(images, tmp_path):
    """End to end in a process of its own; a part that has its result is not repeated."""
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        for part in ("train", "test"):
            archive.add(images / part, part)
    out = tmp_path / "out"
    arguments = ["--out", out, "--data", tmp_path / "images.tar.xz", "--device", "cpu", "--tiny"]
    command = [sys.executable, FOLDER / "gpu.py", *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {row["part"]: row for row in json.loads((out / "report.json").read_text())}
    assert not [row for row in results.values() if "error" in row]
    equal = [row for part, row in results.items() if part.startswith("equality")]
    assert [(row["equal"], row["difference"]) for row in equal] == [(True, 0.0)] * 3
    steps = [row for part, row in results.items() if part.startswith("step")]
    assert len(steps) == 3
    assert all(row["seconds"] > 0 and row["operators"] > 500 for row in steps)
    assert {name: (results[name]["status"], results[name]["epochs"]) for name in ("search", "training")} == {
        "search": (0, 1),
        "training": (0, 1),
    }
    assert "| second order, bfloat16, captured |" in (out / "report.md").read_text()

    (out / "images.json").unlink()  # the shortest part
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json") if not path.name.startswith("report")}
    again = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert [line.split(":")[0] for line in again.stdout.splitlines()] == ["images", f"{out / 'report.md'} is written"]
    assert all((out / name).stat().st_mtime_ns == time for name, time in before.items())
