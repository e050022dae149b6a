"""How large the project is: lines and kilobytes of product and tests, and what a search and a training load.

    python benchmarks/size.py

Takes half a minute: what is loaded is counted after a search and a training of two batches each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAPER = ["genotypes", "operations", "model_search", "architect", "train_search", "model", "train", "test"]
LOADED = """
import importlib, json, sys
script = importlib.import_module(sys.argv[1])
small = {"gpu": -1, "init_channels": 2, "layers": 3, "batch_size": 8, "workers": 0, "fast_dev_run": True}
getattr(script, sys.argv[2])(images="digits", run_dir=sys.argv[3], **small)
print(json.dumps([module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]))
"""


def main() -> None:
    files = [
        ROOT / name for name in subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).splitlines()
    ]
    others = [ROOT / name for name in ("tests", "benchmarks", "examples")]
    product = [path for path in files if not any(path.is_relative_to(other) for other in others)]
    tests = [path for path in files if path.is_relative_to(ROOT / "tests")]
    groups = {
        "product": product,
        "tests": tests,
        "the paper, in reading order": [ROOT / f"{name}.py" for name in PAPER],
    }
    for script, function in (("train_search", "search"), ("train", "train")):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", LOADED, script, function, f"{folder}/run"]
            output = subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL)
        loaded = json.loads(output.splitlines()[-1])
        groups[f"loaded by {script}.py"] = [path for path in map(Path, loaded) if path in product]
    print("| | files | lines | kB |\n|---|---|---|---|")
    for name, paths in groups.items():
        content = [path.read_bytes() for path in paths]
        lines, size = sum(text.count(b"\n") for text in content), sum(map(len, content))
        print(f"| {name} | {len(paths)} | {lines:,} | {size / 1000:,.0f} |")


if __name__ == "__main__":
    main()
