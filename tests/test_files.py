"""Files that are none, wherever one is read; and JSON that says one thing twice."""

import json
import os
from argparse import Namespace

import pytest
from runs import search_run, training_run
from torch import nn

import genotypes
from experiment import files
from experiment.errors import UserError
from experiment.weights import load_weights
from nas import networks
from nas.architecture import Architecture
from pictures import drawing, history

READERS = {
    "genotype.json": [Architecture.read, lambda path: Architecture.read(os.path.dirname(path))],
    "architecture.json": [lambda path: Architecture.read(path, "nasbench201")],
    "weights.pt": [lambda path: load_weights(nn.Linear(1, 1), path)],
    "config.json": [lambda path: history.read(os.path.dirname(path))],
    "metrics.jsonl": [lambda path: history.read(os.path.dirname(path))],
    "normal.png": [lambda path: drawing.draw(Architecture(genotypes.DARTS_V2), os.path.dirname(path))],
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize(("name", "read"), [(name, read) for name, readers in READERS.items() for read in readers])
def test_what_is_not_a_file_is_never_opened(tmp_path, name, read, kind, no_waiting):
    folder = search_run(tmp_path / "run", epochs=1)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/null")
    message = "it is a pipe, a socket or a device, not a file"
    if name in ("config.json", "metrics.jsonl"):  # a run's folder is looked through before anything in it is opened
        message = "is neither a file nor a folder" if kind == "pipe" else "is a symbolic link"
    elif (name, kind) == ("normal.png", "device"):
        message = "is not one of our pictures"
    with pytest.raises(UserError, match=message):
        read(str(folder / name))


def test_a_run_whose_files_are_pipes(tmp_path, script, no_waiting):
    """Its architecture can still be read; the run is refused."""
    folder = training_run(tmp_path / "run", genotypes.DARTS_V2, epochs=1)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert networks.read(Namespace(space="darts", arch=str(folder))).genotype == genotypes.DARTS_V2
    with pytest.raises(UserError, match=r"config\.json is neither a file nor a folder"):
        history.read(folder)
    status, _, error = script("train", "--resume", folder)
    assert (status, error.count("\n")) == (2, 1)
    assert "cannot use this folder (config.json is neither a file nor a folder" in error


def test_a_key_twice(tmp_path):
    """JSON's readers take the last of them; here, none is lost without a word."""
    genotype = json.dumps(Architecture(genotypes.DARTS_V2).json)
    doubled = genotype[:-1] + ', "normal": [["none", 0], ["none", 1]]}'
    folder = search_run(tmp_path / "run", epochs=2)
    (folder / "genotype.json").write_text(doubled)
    (folder / "architecture.json").write_text('{"a": 1, "a": 2}')
    for path in (folder / "genotype.json", folder):
        with pytest.raises(UserError, match="does not hold JSON: it has the key 'normal' twice"):
            Architecture.read(str(path))
    with pytest.raises(UserError, match="it has the key 'a' twice"):
        Architecture.read(str(folder), "nasbench201")
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.replace('{"epoch": 0', '{"lr": 1, "epoch": 0'))
    with pytest.raises(UserError, match=r"line 1, .*it has the key 'lr' twice"):
        history.read(folder)
    metrics.write_text(whole)
    config = folder / "config.json"
    config.write_text('{"arguments": {}, ' + config.read_text()[1:])
    with pytest.raises(UserError, match="it has the key 'arguments' twice"):
        history.read(folder)


def test_a_key_twice_in_the_configuration_of_a_run_that_goes_on(tmp_path, script):
    folder = search_run(tmp_path / "run", epochs=1)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"seed": 7', '"seed": 7, "seed": 8', 1))
    status, _, error = script("train_search", "--resume", folder)
    assert (status, error.count("\n")) == (2, 1)
    assert "it has the key 'seed' twice" in error


def test_other_readers_of_json_agree():
    for content in ('{"a": [1, {"b": null}], "c": NaN}', "3", '{"a": {"a": 1}}'):
        assert repr(files.parse_json(content)) == repr(json.loads(content))
    for content in ("{", "[" * 100_000, b"\xff"):
        with pytest.raises(ValueError, match=r".+"):
            files.parse_json(content)
