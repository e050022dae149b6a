"""A trained run as others use it: tested with nothing but its folder, asked from Python and from a terminal, exported;
what is refused.
"""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import load as load_script

import data
import export
import genotypes
import predict
from architectures import load_space, networks, trained
from architectures.cells import Cells
from architectures.trained import Trained
from experiment import cli
from experiment.errors import UserError
from experiment.run import versions
from image_files import folders, interleave
from model import NetworkCIFAR
from nas.loading import build_network
from nas.mutators import RandomMutator

ROOT = Path(__file__).parent.parent
CLASSES = ('"alte" Autos', "Müllers Frösche", "Opa's Schiffe")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Photographs of three classes, of other shapes than the network's, under names that people give them."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 5)):
        for level, label in enumerate(CLASSES):
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (20, 30, 3)) + 60 * level
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / label / f"{label}, größer & {number}.png")
    return root


@pytest.fixture(scope="session")
def trained_run(photos, tmp_path_factory):
    """A training run on them, and its last line."""
    folder = tmp_path_factory.mktemp("runs") / "my run"
    arguments = ["--dataset", "folder", "--data", str(photos), "--image_size", "16", "--gpu", "-1", "--workers", "0"]
    arguments += [
        "--arch",
        "DARTS_V2",
        "--auxiliary",
        "--init_channels",
        "2",
        "--layers",
        "3",
        "--epochs",
        "1",
        "--batch_size",
        "8",
    ]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", ["train.py", *arguments, "--run_dir", str(folder)])
        cli.run(load_script("train").main)
    return folder


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def change(run, **fields):
    path = run / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def recorded(run, metric="test_acc"):
    [metrics] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return metrics[metric]


def check_measured(out, run):
    """test.py has measured what the run recorded: accuracy, which is coarse, and loss."""
    assert float(re.search(r"^test_acc (\S+)$", out, re.MULTILINE)[1]) == pytest.approx(recorded(run), abs=1e-6)
    assert float(re.search(r"^test_loss (\S+)", out, re.MULTILINE)[1]) == pytest.approx(
        recorded(run, "test_loss"), rel=1e-5
    )


# ---- The folder


def test_the_folder_says_all_that_using_the_network_needs(run, photos):
    network = trained.read(run)
    images = data.load(data.Options("folder", str(photos), 16, workers=0))
    assert network.architecture == Cells(genotypes.DARTS_V2).json
    assert (network.space, network.init_channels, network.layers, network.auxiliary) == ("darts", 2, 3, True)
    assert network.classes == CLASSES == images.classes
    assert (network.image_size, network.channels, network.mean, network.std) == (16, 3, images.mean, images.std)
    assert (network.accuracy, network.measured_on) == (recorded(run), "15 test images, after epoch 1 of 1")
    assert network.versions == versions()
    assert msgspec.convert(network.json, Trained) == network
    weights = torch.load(run / "weights.pt", weights_only=True)
    assert weights.keys() == NetworkCIFAR(2, 3, 3, True, genotypes.DARTS_V2).state_dict().keys()


def test_a_run_is_tested_with_nothing_but_its_folder(script, run):
    status, out, err = script("test", run)
    assert (status, err) == (0, "")
    assert f"the run says {recorded(run):f} (15 test images, after epoch 1 of 1)" in out
    check_measured(out, run)


def test_the_images_to_test_on_are_all_that_it_needs(script, run, photos, tmp_path):
    """With the statistics of the training images, and not of those that are there."""
    shutil.copytree(photos / "test", tmp_path / "data" / "test")
    (run / "config.json").unlink()
    status, out, err = script("test", run, "--data", "data", "--gpu", "-1", "--workers", "0")
    assert (status, err) == (0, "")
    check_measured(out, run)


def test_the_authors_arguments_work_as_before(script, run, photos):
    folder = [
        "--dataset",
        "folder",
        "--data",
        photos,
        "--gpu",
        "-1",
        "--workers",
        "0",
        "--init_channels",
        "2",
        "--layers",
        "3",
        "--auxiliary",
    ]
    arguments = ["--arch", run, "--model_path", run / "weights.pt", *folder]
    status, out, err = script("test", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(r"--image_size 32: .*weights\.pt was trained on images of 16 pixels", err)
    for _ in range(2):
        status, out, err = script("test", *arguments, "--image_size", "16")
        assert (status, err) == (0, "")
        check_measured(out, run)
        (run / "network.json").unlink(missing_ok=True)  # a run of earlier versions


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image_size", "32"], "--image_size 32: the network in run has 16, which is fixed"),
        (["--dataset", "digits"], "digits has images of 32 pixels, not 16"),
        (
            ["--data", "other"],
            r"the classes of the images are not those of the network: only one of both has .*Opa's Schiffe",
        ),
    ],
)
def test_other_sizes_and_classes_are_refused(script, run, photos, tmp_path, arguments, words):
    shutil.copytree(photos / "test", tmp_path / "other" / "test")
    shutil.rmtree(tmp_path / "other" / "test" / CLASSES[2])
    status, out, err = script("test", "run", "--gpu", "-1", "--workers", "0", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(words, err)


def test_the_classes_order_counts():
    digits, options = tuple("0123456789"), data.Options("digits")
    assert len(data.load_test(options, digits).test) == 360
    with pytest.raises(UserError, match=r"classes of the images are not those of the network: their order differs"):
        data.load_test(options, digits[::-1])


# ---- From Python


def test_from_python(run, photos):
    net = predict.load(run)
    assert net.classes == CLASSES
    assert not net.model.training
    paths = sorted((photos / "test").rglob("*.png"))
    with Image.open(paths[0]) as image:
        x = net.preprocess(image)
        assert net.predict([image]) == net.predict([paths[0]])
    assert (x.shape, x.dtype) == ((3, 16, 16), torch.float32)
    logits = net.model(torch.stack([x, x]))
    assert logits.shape == (2, 3)
    [prediction] = net.predict([paths[0]])
    names, probabilities = zip(*prediction, strict=True)
    assert set(names) == set(CLASSES)
    assert probabilities == tuple(sorted(probabilities, reverse=True))
    assert dict(prediction) == pytest.approx(dict(zip(CLASSES, logits[0].softmax(0).tolist(), strict=True)), abs=1e-6)
    assert net.predict([paths[0]], top=1) == [prediction[:1]]
    assert net.predict([]) == []
    with pytest.raises(UserError, match=r"not ndarray: PIL\.Image\.fromarray"):
        net.predict([np.zeros((16, 16, 3), dtype=np.uint8)])


def test_predictions_are_what_was_measured(run, photos):
    """The accuracy of the predictions, one image at a time, is the run's; the images are those of the evaluation, to
    the bit.
    """
    net = predict.load(run)
    options = data.Options("folder", str(photos), 16, workers=0, batch_size=15)
    images = data.load(options)
    [(batch, _)] = data.test_batches(images, options, "cpu")
    samples = folders.walk(photos / "test", [])[1]
    paths = [samples[index][0] for index in interleave(np.array([label for _, label in samples]))]
    assert torch.equal(torch.stack([net.preprocess(path) for path in paths]), batch)
    alone = data.load_test(options, CLASSES, (images.mean, images.std))
    assert torch.equal(alone.test.labels, images.test.labels)  # not sorted, for test.py's running accuracy
    right = [net.predict([path], top=1)[0][0][0] == Path(path).parent.name for path in paths]
    assert 100 * sum(right) / len(right) == pytest.approx(recorded(run))


def test_in_a_program_elsewhere(run, photos, tmp_path):
    """In a process of its own, in which none of the project's modules has been imported, with two files of the run."""
    (tmp_path / "alone").mkdir()
    for name in ("network.json", "weights.pt"):
        shutil.copy(run / name, tmp_path / "alone")
    path = max((photos / "test").rglob("*.png"))
    load = "sys.path.append(root); from predict import load; net = load(run)"
    program = f"import sys; root, run, path = sys.argv[1:]; {load}; print(net.predict([path]))"
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT, "alone", path], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{predict.load(run).predict([path])}\n"), done.stderr


# ---- predict.py


def test_the_table(script, run, photos):
    net = predict.load(run)
    folder = photos / "test" / CLASSES[1]
    status, out, err = script("predict", run, folder, "--gpu", "-1", "--top", "2", "--batch_size", "2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    paths = sorted(folder.iterdir())
    assert len({len(line) for line in lines}) == 1
    for line, path, [first, second] in zip(lines, paths, net.predict(paths, top=2), strict=True):
        expected = rf"{re.escape(str(path))} +{first[0]} +{100 * first[1]:.2f}% +{second[0]} +{100 * second[1]:.2f}%"
        assert re.fullmatch(expected, line)


def test_json(script, run, photos):
    status, out, err = script("predict", run, photos / "test", "--gpu", "-1", "--json")
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    paths = sorted(map(str, (photos / "test").rglob("*.png")))
    assert [line["image"] for line in lines] == paths
    for line, prediction in zip(lines, predict.load(run).predict(paths), strict=True):
        assert line["classes"] == pytest.approx(dict(prediction), abs=1e-6)
        assert list(line["classes"]) == [name for name, _ in prediction]


def test_each_file_that_cannot_be_read_is_named_and_the_others_are_predicted(script, run, photos, tmp_path):
    good = next((photos / "test").rglob("*.png"))
    (tmp_path / "truncated.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("a letter")
    bad = ["truncated.png", "text.jpg", "nowhere.png"]
    status, out, err = script("predict", "run", *bad, good, "--gpu", "-1")
    assert status == 2
    assert out.startswith(str(good))
    assert out.count("\n") == 1
    *lines, last = err.splitlines()
    assert [re.search(r"the image (\S+):", line)[1] for line in lines] == bad
    assert last == "predict.py: error: 3 of 4 images could not be read: see above"


def test_any_image_that_pillow_reads_and_files_of_other_kinds_in_folders(script, run, tmp_path):
    image = Image.new("RGB", (9, 7), "red")
    (tmp_path / "folder").mkdir()
    image.save(tmp_path / "folder" / "a.jpg")
    (tmp_path / "folder" / ".hidden").mkdir()
    image.save(tmp_path / "folder" / ".hidden" / "a.jpg")
    (tmp_path / "folder" / "._a.jpg").touch()
    (tmp_path / "folder" / "notes.txt").touch()
    image.save(tmp_path / "b.gif")
    status, out, err = script("predict", "run", "folder", "b.gif", "--gpu", "-1")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["folder/a.jpg", "b.gif"]
    assert err.splitlines()[0] == "left out hidden files and folders (2): folder/._a.jpg; folder/.hidden"
    assert re.fullmatch(r"left out files of other kinds than .* \(1\): folder/notes\.txt", err.splitlines()[1])
    (tmp_path / "folder" / "a.jpg").unlink()
    status, _, err = script("predict", "run", "folder", "--gpu", "-1")
    assert (status, err.count("\n")) == (2, 1)
    assert "the folder folder holds no image" in err


# ---- What is refused


def truncated(run):
    (run / "weights.pt").write_bytes((run / "weights.pt").read_bytes()[:5000])


def without_a_description(run):
    (run / "network.json").unlink()


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("test", truncated, r"weights\.pt does not hold saved weights"),
        ("export", without_a_description, r"cannot read run/network\.json .*: name the folder of a run of train\.py"),
        ("predict", shutil.rmtree, "name the folder of a run of"),
    ],
)
def test_damaged_runs(script, run, photos, name, damage, words):
    damage(run)
    image = next((photos / "test").rglob("*.png"))
    arguments = {"test": ["--data", photos], "predict": [image], "export": ["--images", image]}[name]
    status, _, err = script(name, "run", *arguments, *(["--gpu", "-1"] if name != "export" else []))
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(words, err)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": "3"}, r"`\$.layers`"),
        ({"network": "imagenet", "image_size": 72}, "multiple of 32 pixels, from 64 on: --image_size is 72"),
        ({"classes": ["a", "b"]}, r"weights\.pt holds the weights of another network"),
        ({"architecture": {"normal": 3}}, "an architecture must be an object with"),
        ({"space": "nowhere", "auxiliary": False}, "unknown space 'nowhere'"),
    ],
)
def test_descriptions_that_describe_nothing(run, fields, words):
    change(run, **fields)
    with pytest.raises(ValueError, match=words) as raised:
        predict.load(run)
    assert isinstance(raised.value, UserError)
    assert "\n" not in str(raised.value)


def test_code_that_only_the_folder_names_is_not_run(script, run, tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "space.py").write_text(f"open({str(trap)!r}, 'w')\n")
    change(run, space="space.py:Net", architecture={"a": "b"}, auxiliary=False)
    for name in ("test", "predict", "export"):
        status, _, err = script(
            name, "run", *["image.png"][: name == "predict"], *(["--gpu", "-1"] if name != "export" else [])
        )
        assert (status, err.count("\n")) == (2, 1)
        assert "if you trust that file, add --space space.py:Net" in err
    assert not trap.exists()


# ---- export.py


@pytest.fixture
def missing(monkeypatch):
    """Packages as if they were not installed."""
    return lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnx"), ("onnx", "onnxruntime"), ("safetensors", "safetensors")]
)
def test_a_missing_package_is_named(script, run, missing, format, package):
    if package == "onnxruntime":
        pytest.importorskip("onnx"), pytest.importorskip("onnxscript")  # which are missed first
    missing(package, f"{package}.torch")
    status, out, err = script("export", "run", "--format", format)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert re.search(rf"the package {package} is missing: pip install -r requirements-export\.txt", err)
    assert not list(run.glob("network.[!j]*"))


def said_of(out):
    """The largest difference that export.py printed; and that it printed all else."""
    for pattern in (
        r"wrote run/\S+: \d+\.\d\d MB",
        r"\d\.\d{3} million parameters, \d+\.\d million multiply-adds",
        r"\d ms per image at batch 1, .* at batch 32",
    ):
        assert re.search(pattern, out), pattern
    return float(re.search(r"differ by at most (\S+) from PyTorch's on 15 images", out)[1])


def test_torch_export(script, run, photos):
    status, out, err = script("export", "run", "--format", "torch")
    assert (status, err) == (0, "")
    assert said_of(out) < 1e-5
    weights = NetworkCIFAR(2, 3, 3, False, genotypes.DARTS_V2).parameters()
    assert f"\n{sum(weight.numel() for weight in weights) / 1e6:.3f} million parameters" in out
    extra = dict.fromkeys(["classes", "preprocessing"], "")
    program = torch.export.load(run / "network.pt2", extra_files=extra).module()
    assert tuple(json.loads(extra["classes"])) == CLASSES
    assert "the centre square, resized to image_size" in extra["preprocessing"]
    net = predict.load(run)
    x = torch.stack([net.preprocess(path) for path in sorted((photos / "test").rglob("*.png"))])
    for batch in (1, 2, 15):
        torch.testing.assert_close(program(x[:batch]).softmax(1), net.model(x[:batch]).softmax(1), atol=1e-5, rtol=0)


def test_safetensors(script, run, photos):
    safetensors = pytest.importorskip("safetensors.torch")
    status, out, err = script("export", "run", "--format", "safetensors")
    assert (status, err) == (0, "")
    assert said_of(out) < 1e-5
    tensors = safetensors.load_file(run / "network.safetensors")
    assert not any("auxiliary" in name for name in tensors)
    assert tensors.keys() == NetworkCIFAR(2, 3, 3, False, genotypes.DARTS_V2).state_dict().keys()
    path = next((photos / "test").rglob("*.png"))
    assert predict.load(run / "network.safetensors").predict([path]) == predict.load(run).predict([path])
    (run / "half.safetensors").write_bytes((run / "network.safetensors").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"half\.safetensors is not a \.safetensors file, or damaged"):
        predict.load(run / "half.safetensors")
    safetensors.save_file(tensors, run / "bare.safetensors")
    with pytest.raises(UserError, match=r"bare\.safetensors does not describe its network"):
        predict.load(run / "bare.safetensors")


def test_onnx(script, run, photos, tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    status, out, err = script("export", "run", "--output", "x.onnx")
    assert (status, err) == (0, "")
    assert "wrote x.onnx" in out
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(metadata["classes"])) == CLASSES
    assert json.loads(metadata["mean"]) == list(trained.read(run).mean)
    assert msgspec.json.decode(metadata["network.json"], type=Trained) == trained.read(run)
    net = predict.load(run)
    x = torch.stack([net.preprocess(path) for path in sorted((photos / "test").rglob("*.png"))])
    for batch in (1, 2, 15):
        [logits] = session.run(["logits"], {"images": x[:batch].numpy()})
        torch.testing.assert_close(
            torch.from_numpy(logits).softmax(1), net.model(x[:batch]).softmax(1), atol=1e-5, rtol=0
        )
    page = (ROOT / "docs" / "own_images.md").read_text()
    snippet = re.search(r"```python\n(import json\n.*?)```", page, re.DOTALL)[1]
    photo = max((photos / "test").rglob("*.png"))
    snippet = re.sub(r'"runs/\S+?\.onnx"', repr(str(tmp_path / "x.onnx")), snippet)
    snippet = re.sub(r"Image\.open\(.*?\)", f"Image.open({str(photo)!r})", snippet)
    names = {}
    exec(snippet, names)
    expected = dict(net.predict([photo])[0])
    assert dict(zip(names["classes"], names["probabilities"].tolist(), strict=True)) == pytest.approx(
        expected, abs=1e-5
    )


def test_a_network_of_one_channel(script, run, photos):
    torch.save(NetworkCIFAR(2, 3, 3, True, genotypes.DARTS_V2, in_channels=1).state_dict(), run / "weights.pt")
    change(run, channels=1, mean=[0.5], std=[0.25])
    image = str(next((photos / "test").rglob("*.png")))
    status, out, err = script("export", "run", "--format", "torch", "--images", image)
    assert (status, err) == (0, "")
    assert "from PyTorch's on 1 images" in out
    status, out, err = script("predict", "run", image, "--gpu", "-1")
    assert (status, err, out.count("\n")) == (0, "", 1)
    status, out, err = script("test", "run", "--gpu", "-1")
    assert (status, err) == (0, "")
    assert re.search(r"^test_acc ", out, re.MULTILINE)


def test_an_export_that_computes_something_else_is_an_error(script, run, monkeypatch):
    def wrong(net, path):
        path.write_bytes(b"")
        return "nothing", lambda images: net.model(images) + torch.tensor([0.001, 0, 0])

    module = load_script("export")
    monkeypatch.setitem(export.FORMATS, "torch", ("x", wrong))
    monkeypatch.setattr(sys, "argv", ["export.py", str(run), "--format", "torch"])
    monkeypatch.setattr(module, "FORMATS", export.FORMATS)
    (run / "x").write_bytes(b"a good one")
    with pytest.raises(UserError, match="would compute something else than the run"):
        module.main()
    assert (run / "x").read_bytes() == b"a good one"


def test_an_export_where_the_images_have_gone(script, run, photos, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    config["arguments"]["data"] = "gone"
    (run / "config.json").write_text(json.dumps(config))
    status, _, err = script("export", "run", "--format", "torch")
    assert (status, err.count("\n")) == (2, 1)
    assert re.search(
        r"the images to compare the export on are missing \(there is no folder \S*gone.*name some with --images", err
    )
    net = predict.load(run)
    assert len(export.real_images(net, str(run), [str(photos / "test" / CLASSES[0])])) == 5


@pytest.mark.parametrize("space", ["enas_micro", "enas_macro", "nasbench201", f"{ROOT}/examples/small_space.py:Net"])
def test_networks_of_other_spaces(run, tmp_path, space):
    """Any of their architectures, from its description; code is run that the caller names, wherever it lay when it was
    trained.
    """
    args = Namespace(space=space, init_channels=2, layers=None, auxiliary=False, channels=3, space_arg=None)
    networks.set_sizes(args, 16, 8)
    mutator = RandomMutator(build_network(args, 3))
    mutator.reset()
    architecture = mutator.current()
    network = networks.build_discrete(args, 3, load_space(space)(architecture))
    torch.save(network.state_dict(), run / "weights.pt")
    change(run, **vars(args) | {"space": space.replace(f"{ROOT}/examples", "elsewhere")}, architecture=architecture)
    net = predict.load(run, space=space)
    x = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(net.model(x), network.eval()(x))
    if space.endswith("Net"):  # the smallest
        _, exported = export.export_torch(net, tmp_path / "network.pt2")
        assert export.compare(net, exported, x) < 1e-5
