"""A trained run as others use it: tested, asked from Python and from a terminal, exported; what is refused."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import arguments_of, check_measured, edit, rows_of, said, save_image, succeed

import data
import export
import genotypes
import predict
from architectures import trained
from architectures.cells import Cells
from architectures.trained import Trained
from experiment.errors import UserError
from image_files import folders, interleave
from model import NetworkCIFAR

ROOT = Path(__file__).parent.parent
CPU = ["--gpu", "-1", "--workers", "0"]
CLASSES = ('"alte" Autos', "Müllers Frösche", "Opa's Schiffe")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Photographs of three classes, of other shapes than the network's, under names that people give them."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 5)):
        for (level, label), number in itertools.product(enumerate(CLASSES), range(count)):
            pixels = generator.integers(0, 128, (20, 30, 3)) + 60 * level
            save_image(root / part / label / f"{label}, größer & {number}.png", pixels)
    return root


@pytest.fixture(scope="session")
def trained_run(photos, tmp_path_factory):
    """A training run on them."""
    folder = tmp_path_factory.mktemp("runs") / "my run"
    command = "train --arch DARTS_V2 --auxiliary --init_channels 2 --layers 3 --epochs 1 --batch_size 8"
    succeed(command.split(), photos, "--run_dir", folder)
    return folder


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def recorded(run):
    return rows_of(run)[-1]


# ---- The folder


def test_the_folder_says_all_that_using_the_network_needs(run, photos):
    network = trained.read(run)
    images = data.load(data.Options("folder", str(photos), 16, workers=0))
    assert network.architecture == Cells(genotypes.DARTS_V2).json
    assert (network.space, network.init_channels, network.layers, network.auxiliary) == ("darts", 2, 3, True)
    assert network.classes == CLASSES == images.classes
    assert (network.image_size, network.channels, network.mean, network.std) == (16, 3, images.mean, images.std)
    assert network.versions["torch"] == torch.__version__
    weights = torch.load(run / "weights.pt", weights_only=True)
    assert weights.keys() == NetworkCIFAR(2, 3, 3, True, genotypes.DARTS_V2).state_dict().keys()


def test_a_run_is_tested_with_its_folder_alone_or_on_other_images(done, run, photos, tmp_path):
    """With the statistics of the training images, which need not be there."""
    out = done("test", run)
    assert f"the run says {recorded(run)['test_acc']:f} (15 test images, after epoch 1 of 1)" in "\n".join(out)
    check_measured(out, recorded(run))
    shutil.copytree(photos / "test", tmp_path / "data" / "test")
    (run / "config.json").unlink()
    check_measured(done("test", run, "--data", "data", *CPU), recorded(run))


def test_the_authors_arguments_work_as_before(done, refused, run, photos):
    arguments = shlex.split("--dataset folder --init_channels 2 --layers 3 --auxiliary")
    arguments += ["--data", photos, "--arch", run, "--model_path", run / "weights.pt", *CPU]
    error = refused("test", *arguments)
    assert re.search(r"--image_size 32: .*weights\.pt was trained on images of 16 pixels", error)
    for _ in range(2):
        check_measured(done("test", *arguments, "--image_size", "16"), recorded(run))
        (run / "network.json").unlink(missing_ok=True)  # as in a run of the authors


def test_other_sizes_and_classes_are_refused(refused, run, photos, tmp_path):
    shutil.copytree(photos / "test", tmp_path / "other" / "test")
    shutil.rmtree(tmp_path / "other" / "test" / CLASSES[2])
    for arguments, words in (
        ("--image_size 32", "--image_size 32: the network in run has 16, which is fixed"),
        ("--dataset digits", "digits has images of 32 pixels, not 16"),
        ("--data other", "classes of the images are not those of the network: only one of both has .*Opa's Schiffe"),
    ):
        assert re.search(words, refused("test", "run", *CPU, *arguments.split()))


def test_the_classes_order_counts():
    with pytest.raises(UserError, match="not those of the network: their order differs"):
        data.load_test(data.Options("digits"), tuple("9876543210"))


# ---- From Python


def test_from_python(run, photos):
    net = predict.load(run)
    assert net.classes == CLASSES
    assert not net.model.training
    path = max((photos / "test").rglob("*.png"))
    x = net.preprocess(path)
    assert (x.shape, x.dtype) == ((3, 16, 16), torch.float32)
    [logits] = net.model(x[None])
    [prediction] = net.predict([path])
    assert dict(prediction) == pytest.approx(dict(zip(CLASSES, logits.softmax(0).tolist(), strict=True)), abs=1e-6)
    assert prediction == sorted(prediction, key=lambda pair: -pair[1])
    with Image.open(path) as image:
        assert net.predict([image, path], top=1) == [prediction[:1]] * 2
    assert net.predict([]) == []
    with pytest.raises(UserError, match=r"not ndarray: PIL\.Image\.fromarray"):
        net.predict([np.zeros((16, 16, 3), dtype=np.uint8)])


def test_predictions_are_what_was_measured(run, photos):
    """One by one they have the run's accuracy; the images are those of the evaluation, to the bit."""
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
    assert 100 * sum(right) / len(right) == pytest.approx(recorded(run)["test_acc"])


def test_in_a_program_elsewhere(run, photos, tmp_path):
    """In a process of its own, in which none of the project's modules has been imported, with two files of the run."""
    (tmp_path / "alone").mkdir()
    for name in ("network.json", "weights.pt"):
        shutil.copy(run / name, tmp_path / "alone")
    path = max((photos / "test").rglob("*.png"))
    load = "sys.path.append(root); from predict import load; net = load(run)"
    program = f"import sys; root, run, path = sys.argv[1:]; {load}; print(net.predict([path]))"
    command = [sys.executable, "-c", program, ROOT, "alone", path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{predict.load(run).predict([path])}\n"), done.stderr


# ---- predict.py


def test_the_table(done, run, photos):
    net, folder = predict.load(run), photos / "test" / CLASSES[1]
    paths = sorted(folder.iterdir())
    lines = done("predict", run, folder, "--gpu", "-1", "--top", "2", "--batch_size", "2")
    assert len({len(line) for line in lines}) == 1
    for line, path, [first, second] in zip(lines, paths, net.predict(paths, top=2), strict=True):
        expected = rf"{re.escape(str(path))} +{first[0]} +{100 * first[1]:.2f}% +{second[0]} +{100 * second[1]:.2f}%"
        assert re.fullmatch(expected, line)


def test_json(done, run, photos):
    paths = sorted(map(str, (photos / "test").rglob("*.png")))
    paths.insert(1, paths[0])  # one that is named twice has two lines
    lines = map(json.loads, done("predict", run, paths[0], photos / "test", "--gpu", "-1", "--json"))
    for line, path, prediction in zip(lines, paths, predict.load(run).predict(paths), strict=True):
        assert line["image"] == path
        assert line["classes"] == pytest.approx(dict(prediction), abs=1e-6)
        assert list(line["classes"]) == [name for name, _ in prediction]


def test_each_file_that_cannot_be_read_is_named_and_the_others_are_predicted(script, run, photos, tmp_path):
    good = next((photos / "test").rglob("*.png"))
    (tmp_path / "truncated.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("a letter")
    bad = ["truncated.png", "text.jpg", "nowhere.png"]
    status, out, err = script("predict", "run", *bad, good, "--gpu", "-1")
    assert (status, out.count("\n"), out.startswith(str(good))) == (2, 1, True)
    *lines, last = err.splitlines()
    assert [re.search(r"the image (\S+):", line)[1] for line in lines] == bad
    assert last == "predict.py: error: 3 of 4 images could not be read: see above"


def test_any_image_that_pillow_reads_and_files_of_other_kinds_in_folders(script, refused, run, tmp_path):
    (tmp_path / "folder" / ".hidden").mkdir(parents=True)
    for path in ("folder/a.jpg", "folder/.hidden/a.jpg", "b.gif"):
        Image.new("RGB", (9, 7), "red").save(tmp_path / path)
    for path in ("folder/._a.jpg", "folder/notes.txt"):
        (tmp_path / path).touch()
    status, out, err = script("predict", "run", "folder", "b.gif", "--gpu", "-1")
    assert (status, [line.split()[0] for line in out.splitlines()]) == (0, ["folder/a.jpg", "b.gif"])
    hidden, others = err.splitlines()
    assert hidden == "left out hidden files and folders (2): folder/._a.jpg; folder/.hidden"
    assert re.fullmatch(r"left out files of other kinds than .* \(1\): folder/notes\.txt", others)
    (tmp_path / "folder" / "a.jpg").unlink()
    assert "the folder folder holds no image" in refused("predict", "run", "folder", "--gpu", "-1")


# ---- What is refused


def test_damaged_runs(refused, run, photos):
    image = next((photos / "test").rglob("*.png"))
    (run / "weights.pt").write_bytes((run / "weights.pt").read_bytes()[:5000])
    assert "weights.pt does not hold saved weights" in refused("test", "run", "--data", photos, "--gpu", "-1")
    (run / "network.json").unlink()
    error = refused("export", "run", "--images", image)
    assert re.search(r"cannot read run/network\.json .*: name the folder of a run of train\.py", error)
    shutil.rmtree(run)
    assert "name the folder of a run of" in refused("predict", "run", image, "--gpu", "-1")


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
    edit(run / "network.json", **fields)
    with pytest.raises(UserError, match=words):
        predict.load(run)


def test_code_that_only_the_folder_names_is_not_run(refused, run, tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "space.py").write_text(f"open({str(trap)!r}, 'w')\n")
    edit(run / "network.json", space="space.py:Net", architecture={"a": "b"}, auxiliary=False)
    for name, *arguments in (("test", "--gpu", "-1"), ("predict", "image.png", "--gpu", "-1"), ("export",)):
        assert "if you trust that file, add --space space.py:Net" in refused(name, "run", *arguments)
    assert not trap.exists()


def test_code_is_run_where_the_caller_names_it(done, photos):
    space = f"{ROOT}/examples/small_space.py:Net"
    flags = shlex.split(f"--space {space} --init_channels 2 --epochs 1 --batch_size 8 --dataset folder --image_size 16")
    done(
        "train", *flags, "--data", photos, "--arch", '{"first": 0, "second": 1, "skip": []}', *CPU, "--run_dir", "small"
    )
    edit(Path("small/network.json"), space="elsewhere/small_space.py:Net")
    check_measured(done("test", "small", "--space", space), recorded("small"))
    done("export", "small", "--space", space, "--format", "torch")


# ---- export.py


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnx"), ("onnx", "onnxruntime"), ("safetensors", "safetensors")]
)
def test_a_missing_package_is_named(refused, run, monkeypatch, format, package):
    if package == "onnxruntime":
        pytest.importorskip("onnx"), pytest.importorskip("onnxscript")  # which are missed first
    for name in (package, f"{package}.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    error = refused("export", "run", "--format", format)
    assert f"the package {package} is missing: pip install -r requirements-export.txt" in error


def check_said(lines):
    """Size, times, and probabilities that are those of PyTorch."""
    out = "\n".join(lines)
    for pattern in (r"wrote run/\S+: \d+\.\d\d MB", r"\d million multiply-adds", r"\d ms per image at batch 1, .* at"):
        assert re.search(pattern, out), pattern
    assert float(re.search(r"differ by at most (\S+) from PyTorch's on 15 images", out)[1]) < 1e-5


def check_run(run, net, photos):
    """`run` gives the logits of `net` for batches of any size."""
    x = torch.stack([net.preprocess(path) for path in sorted((photos / "test").rglob("*.png"))])
    for batch in (1, 2, 15):
        torch.testing.assert_close(run(x[:batch]).softmax(1), net.model(x[:batch]).softmax(1), atol=1e-5, rtol=0)


def test_torch_export(done, run, photos):
    out = done("export", "run", "--format", "torch")
    check_said(out)
    weights = NetworkCIFAR(2, 3, 3, False, genotypes.DARTS_V2).parameters()
    assert f"{sum(weight.numel() for weight in weights) / 1e6:.3f} million parameters" in out[1]
    extra = dict.fromkeys(["classes", "preprocessing"], "")
    program = torch.export.load(run / "network.pt2", extra_files=extra).module()
    assert tuple(json.loads(extra["classes"])) == CLASSES
    assert "the centre square, resized to image_size" in extra["preprocessing"]
    check_run(program, predict.load(run), photos)


def test_safetensors(done, run, photos):
    safetensors = pytest.importorskip("safetensors.torch")
    check_said(done("export", "run", "--format", "safetensors"))
    tensors = safetensors.load_file(run / "network.safetensors")
    assert tensors.keys() == NetworkCIFAR(2, 3, 3, False, genotypes.DARTS_V2).state_dict().keys()
    path = next((photos / "test").rglob("*.png"))
    assert predict.load(run / "network.safetensors").predict([path]) == predict.load(run).predict([path])
    (run / "half.safetensors").write_bytes((run / "network.safetensors").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"half\.safetensors is not a \.safetensors file, or damaged"):
        predict.load(run / "half.safetensors")
    safetensors.save_file(tensors, run / "bare.safetensors")
    with pytest.raises(UserError, match=r"bare\.safetensors does not describe its network"):
        predict.load(run / "bare.safetensors")


def test_onnx(done, run, photos, tmp_path):
    pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert "wrote x.onnx" in done("export", "run", "--output", "x.onnx")[0]
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(metadata["classes"])) == CLASSES
    assert json.loads(metadata["mean"]) == list(trained.read(run).mean)
    assert msgspec.json.decode(metadata["network.json"], type=Trained) == trained.read(run)
    net = predict.load(run)
    check_run(lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0]), net, photos)
    page = (ROOT / "docs" / "own_images.md").read_text()
    snippet = re.search(r"```python\n(import json\n.*?)```", page, re.DOTALL)[1]
    photo = max((photos / "test").rglob("*.png"))
    snippet = re.sub(r'"runs/\S+?\.onnx"', repr(str(tmp_path / "x.onnx")), snippet)
    snippet = re.sub(r"Image\.open\(.*?\)", f"Image.open({str(photo)!r})", snippet)
    names = {}
    exec(snippet, names)
    found = dict(zip(names["classes"], names["probabilities"].tolist(), strict=True))
    assert found == pytest.approx(dict(net.predict([photo])[0]), abs=1e-5)


def test_a_network_of_one_channel(done, run, photos):
    torch.save(NetworkCIFAR(2, 3, 3, True, genotypes.DARTS_V2, in_channels=1).state_dict(), run / "weights.pt")
    edit(run / "network.json", channels=1, mean=[0.5], std=[0.25])
    folder = photos / "test" / CLASSES[0]
    assert "from PyTorch's on 5 images" in done("export", "run", "--format", "torch", "--images", folder)[2]
    assert len(done("predict", "run", folder, "--gpu", "-1")) == 5
    assert said(done("test", "run", "--gpu", "-1"), "test_acc ")


def test_an_export_that_computes_something_else_is_an_error(run, monkeypatch):
    def wrong(net, path):
        path.write_bytes(b"")
        return "nothing", lambda images: net.model(images) + torch.tensor([0.001, 0, 0])

    monkeypatch.setitem(export.FORMATS, "torch", ("x", wrong))
    monkeypatch.setattr(sys, "argv", ["export.py", str(run), "--format", "torch"])
    (run / "x").write_bytes(b"a good one")
    with pytest.raises(UserError, match="would compute something else than the run"):
        export.main()
    assert (run / "x").read_bytes() == b"a good one"


def test_an_export_where_the_images_have_gone(refused, run):
    edit(run / "config.json", arguments=arguments_of(run) | {"data": "gone"})
    words = r"the images to compare the export on are missing \(there is no folder \S*gone.*name some with --images"
    assert re.search(words, refused("export", "run", "--format", "torch"))
