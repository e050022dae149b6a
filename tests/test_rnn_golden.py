"""Everything that the original's recurrent code computes, in float64 (tests/golden/darts_rnn.json)."""

from functools import partial
from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import close
from gradients import relative_error
from numpy.random import RandomState
from torch import as_tensor
from torch.func import functional_call

from rnn import data, sequences, train, train_search
from rnn.architect import EPSILON, FAULTS, alpha_step, learner
from rnn.genotypes import Genotype, RecurrentCell
from rnn.model import Dropouts, Masks, RNNModel
from rnn.model_search import RNNModelSearch

GOLDEN = golden.load("darts_rnn.json")
CELLS = RecurrentCell.names()

pytestmark = pytest.mark.usefixtures("double")


def tokens(seed, T, B, V):
    return as_tensor(RandomState(seed).randint(0, V, (2, T, B)))


def hidden_state(seed, B, H):
    return as_tensor(0.5 * RandomState(seed).randn(1, B, H))


def make_masks(case, seed, B):
    r, V, H = RandomState(seed), case["ntokens"], case["size"]
    p = dropouts(case["masked"])

    def mask(p, *shape):
        return as_tensor((r.rand(*shape) < 1 - p) / (1 - p))

    inner = mask(p.dropoute, V, 1), mask(p.dropouti, 1, B, H), mask(p.dropoutx, B, H), mask(p.dropouth, B, H)
    return Masks(*inner, mask(p.dropout, 1, B, H))


def dropouts(given):
    return Dropouts(**{name: given[name] for name in Dropouts._fields})


def network(case, genotype=None, p=Dropouts()):  # noqa: B008
    """The network of a genotype or of a cell by name, or else the supernet."""
    if "arch" in case:
        genotype = CELLS[case["arch"]]
    sizes = case["ntokens"], case["size"], p
    model = RNNModel(*sizes, genotype) if genotype else RNNModelSearch(*sizes)
    golden.fill(model)
    if not genotype:
        set_alphas(model, case["alpha_seed"], case["alpha_scale"])
    return model


def set_alphas(model, seed, scale):
    with torch.no_grad():
        model.alphas.copy_(as_tensor(scale * RandomState(seed).randn(36, 5)))


def norms(model, expected, tolerance):
    state = model.state_dict()
    for name, norm in expected.items():
        close(state[name].norm(), norm, tolerance)


def check_pass(model, x, y, hidden, masks, expected):
    """One pass: log-probabilities, loss, state, regularisers, gradients and buffers."""
    log_prob, new_hidden, output, states = model(x, hidden, masks)
    loss = F.nll_loss(log_prob.flatten(0, 1), y.flatten())
    loss.backward()
    close(log_prob.flatten()[:8].detach(), expected["log_prob_first8"], 1e-9)
    close(log_prob.norm(), expected["log_prob_norm"], 1e-9)
    close(loss.detach(), expected["loss"], 1e-9)
    close(new_hidden[0].detach(), expected["new_hidden"], 1e-9)
    close(output.square().mean().detach(), expected["ar"], 1e-9)
    close((states[1:] - states[:-1]).square().mean().detach(), expected["tar"], 1e-9)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name != "alphas"}
    assert gradients.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        close(gradients[name].norm(), norm, 1e-8)
    if "alpha_grad" in expected:
        close(model.alphas.grad, expected["alpha_grad"], 1e-8)
    if "running_mean" in expected:
        close(model.rnns[0].bn.running_mean, expected["running_mean"], 1e-9)
        close(model.rnns[0].bn.running_var, expected["running_var"], 1e-9)


PASSES = [
    pytest.param(case, mode, id=f"{case.get('arch', case['size'])}-{case.get('alpha_seed', 0)}-{mode}")
    for case in GOLDEN["search"] + GOLDEN["discrete"]
    for mode in ("train", "eval", "masked")
    if mode in case
]


@pytest.mark.parametrize(("case", "mode"), PASSES)
def test_a_pass(case, mode):
    model, B, seed = network(case), case["batch"], case.get("alpha_seed", case.get("seed"))
    x, y = text = tokens(seed + 1, case["bptt"], B, case["ntokens"])
    hidden = hidden_state(seed + 2, B, case["size"])
    masks = make_masks(case, case[mode]["mask_seed"], B) if mode == "masked" else None
    check_pass(model.train(mode != "eval"), x, y, hidden, masks, case[mode])
    if "arch" not in case:
        close(F.softmax(model.alphas[0].detach(), -1), case["probs_first_row"], 1e-9)
        assert RecurrentCell(model.genotype()).json == case["genotype"]
        if mode == "train":
            check_pass(network(case, Genotype(**case["genotype"])), *text, hidden, None, case["derived_train"])
    elif mode == "eval":
        with torch.no_grad():
            log_prob, *_ = model(x, model.init_hidden(B))
            close(F.nll_loss(log_prob.flatten(0, 1), y.flatten()), case["zero_hidden_eval_loss"], 1e-9)


def alphas_step(case, model, unrolled, faults=FAULTS):
    """The hidden state after a step of the alphas on a training and a validation text."""
    seed, B, V, H = case["alpha_seed"], case["batch"], case["ntokens"], case["size"]
    train = *tokens(seed + 10, case["bptt"], B, V), hidden_state(seed + 20, B, H)
    valid = *tokens(seed + 100, case["bptt_valid"], B, V), hidden_state(seed + 30, B, H)
    given = {name: case[name] for name in ("clip", "wdecay", "arch_lr", "arch_wdecay")}
    args = SimpleNamespace(hvp="finite_difference", unrolled=unrolled, **given)
    return alpha_step(learner(model, args), model, train, valid, case["lr"], args, faults)


@pytest.mark.parametrize("order", ["first_order", "second_order"])
@pytest.mark.parametrize("case", GOLDEN["architect"], ids=lambda case: f"lr{case['lr']}-clip{case['clip']}")
def test_a_step_of_the_alphas(case, order):
    model, expected, tolerance = network(case), case[order], 1e-8 if order == "first_order" else 1e-6
    hidden = alphas_step(case, model, order == "second_order")
    close(model.alphas.grad, expected["alpha_grad"], tolerance)
    close(model.alphas.detach(), expected["alphas_after"], tolerance)
    close(hidden[0], expected["hidden_next"], tolerance)
    for name in ("running_mean", "running_var"):
        close(getattr(model.rnns[0].bn, name), expected[name], tolerance)
    norms(model, expected["norms_after"], 1e-9)


WITHOUT = {"tied_matrix_stepped_too": "tied", "coefficient_capped_at_1": "coefficient"}  # {name in the numbers: fault}


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(case, name, id=name) for case in GOLDEN["architect"] for name in case["not_the_original"]],
)
def test_a_step_of_the_alphas_without_one_fault(case, name):
    model = network(case)
    alphas_step(case, model, True, set(FAULTS) - {WITHOUT[name]})
    close(model.alphas.grad, case["not_the_original"][name]["alpha_grad"], 1e-6)


@pytest.mark.parametrize(
    "kind", ["first_order", "second_order_masks_redrawn", "not_the_original_same_masks_in_both_passes"]
)
def test_a_step_of_the_alphas_with_dropout(kind, monkeypatch):
    [case] = [case for case in GOLDEN["architect"] if "masked" in case]
    first, expected = case["masked"]["mask_seed"], case["masked"][kind]
    seeds = iter([first, first + 1, first + 2, first + 2 if "same_masks" in kind else first + 3])
    model = network(case, p=dropouts(case["masked"]))
    monkeypatch.setattr(model, "draw_masks", lambda B: make_masks(case, next(seeds), B))
    hidden = alphas_step(case, model, kind != "first_order")
    close(model.alphas.grad, expected["alpha_grad"], 1e-8 if kind == "first_order" else 1e-6)
    close(hidden[0], expected["hidden_next"], 1e-8)


def directly(model, train, valid, clip):
    """d/dalpha of L_val(w - xi (c d/dw L_train(w, alpha) + wdecay w), alpha), the same masks in both; and c."""
    masks = model.draw_masks(5)

    def loss(state, x, y, hidden):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        log_prob, *_ = functional_call(model, buffers | state, (x, hidden, masks))
        return F.nll_loss(log_prob.flatten(0, 1), y.flatten())

    weights = {name: parameter for name, parameter in model.named_parameters() if name != "alphas"}
    dw = torch.autograd.grad(loss({}, *train), list(weights.values()), create_graph=True)
    c = min(1.0, float(clip / (torch.sqrt(sum(g.detach().square().sum() for g in dw)) + EPSILON)))
    virtual = {name: w - 0.7 * (c * g + 1e-2 * w) for (name, w), g in zip(weights.items(), dw, strict=True)}
    return torch.autograd.grad(loss(virtual, *valid), [model.alphas]), c


@pytest.mark.parametrize("clip", [0.05, 100.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize(("hvp", "tolerance"), [("exact", 1e-10), ("finite_difference", 1e-4)])
def test_without_faults_it_is_the_gradient_of_the_unrolled_loss(hvp, tolerance, clip):
    """By autograd alone. The finite difference by a small step: at the paper's, ReLU's kinks cost half a percent."""
    case = {"ntokens": 11, "size": 7, "alpha_seed": 1, "alpha_scale": 1.0}
    model = network(case, p=Dropouts(0.5, 0.25, 0.5, 0.2, 0.1))
    train, valid = ((*tokens(seed, 6, 5, 11), hidden_state(seed, 5, 7)) for seed in (1, 2))
    torch.manual_seed(5)
    expected, c = directly(model, train, valid, clip)
    assert (c < 1) == (clip < 1)
    torch.manual_seed(5)
    args = SimpleNamespace(wdecay=1e-2, arch_lr=3e-3, arch_wdecay=1e-3, clip=clip, hvp=hvp, unrolled=True)
    architect = learner(model, args)
    architect.r = 1e-5
    before = [weight.clone() for weight in model.weight_parameters()]
    alpha_step(architect, model, train, valid, 0.7, args)
    assert relative_error([model.alphas.grad], expected) < tolerance
    assert all(map(torch.equal, model.weight_parameters(), before))


@pytest.mark.parametrize("case", GOLDEN["sizes"], ids=lambda case: f"{case.get('arch', 'search')}-{case['ntokens']}")
def test_sizes_and_names(case):
    sizes = case["ntokens"], case["size"], Dropouts()
    with torch.device("meta"):
        model = RNNModelSearch(*sizes) if case["kind"] == "search" else RNNModel(*sizes, CELLS[case["arch"]])
    shapes = golden.keys_shapes(model)
    assert (len(shapes), golden.sha256(shapes)) == (case["entries"], case["keys_shapes_sha256"])
    assert sum(parameter.numel() for name, parameter in model.named_parameters() if name != "alphas") == case["params"]


def test_names_and_their_order():
    case = GOLDEN["keys_shapes"]
    sizes = case["ntokens"], case["size"], Dropouts()
    search = RNNModelSearch(*sizes)
    assert golden.keys_shapes(search) == case["search"]
    known = {id(parameter): name for name, parameter in search.named_parameters()}
    assert [known[id(weight)] for weight in search.weight_parameters()] == GOLDEN["parameter_order"]
    for name in ("ENAS", "DARTS_V1", "DARTS_V2"):
        assert golden.keys_shapes(RNNModel(*sizes, CELLS[name])) == case[name]
        assert RecurrentCell(CELLS[name]).json == GOLDEN["facts"]["genotypes"][name]
    assert "alphas" in search.state_dict()


def test_genotypes_derived_from_alphas():
    model = RNNModelSearch(5, 2, Dropouts())
    for case in GOLDEN["genotypes_of_alphas"]:
        set_alphas(model, case["seed"], case["scale"])
        assert RecurrentCell(model.genotype()).json == {"recurrent": case["recurrent"], "concat": case["concat"]}
    set_alphas(model, 0, 0.0)
    assert RecurrentCell(model.genotype()).json == GOLDEN["genotype_of_zero_alphas"]


def stream(seed, count, V):
    return as_tensor(RandomState(seed).randint(0, V, count))


def texts(case):
    """Training text, validation text for the alphas, and validation text to evaluate on."""
    train = stream(case["seed"] + 1, case["train_tokens"], case["ntokens"])
    valid = stream(case["seed"] + 2, case["valid_tokens"], case["ntokens"])
    columns = case["batch"], case["batch"], case["eval_batch"]
    return [data.batchify(text, B, "") for text, B in zip((train, valid, valid), columns, strict=True)]


def loop_arguments(case):
    names = {"lr", "clip", "wdecay", "bptt", "arch_lr", "arch_wdecay", "unrolled"} & case.keys()
    given = {name: case[name] for name in names}
    return SimpleNamespace(
        **given, alpha=case["ar_alpha"], beta=case["tar_beta"], hvp="finite_difference", faithful=True
    )


def check_steps(model, step, pieces, meters, expected, tolerance):
    """Makes the steps of an epoch."""
    model.train()
    for (row, length, x, y), values in zip(pieces, expected, strict=True):
        meters.reset()
        loss, norm = step(row, length, x, y)
        assert (row, length, len(x)) == (values["position"], values["seq_len"], values["rows"])
        close(meters.loss.avg, values["raw_loss"], tolerance)
        close(loss.detach(), values["loss"], tolerance)
        close(norm, values["grad_norm"], tolerance)
        if "alpha_grad_norm" in values:
            close(model.alphas.grad.norm(), values["alpha_grad_norm"], tolerance)
        if "alpha_grad" in values:
            close(model.alphas.grad, values["alpha_grad"], tolerance)


@pytest.mark.parametrize(
    "case", GOLDEN["train_search"], ids=lambda case: f"unrolled-{case['unrolled']}-lr{case['lr']}-{case['numpy_seed']}"
)
def test_an_epoch_of_the_search(case):
    model, args, meters = network(case), loop_arguments(case), sequences.Meters()
    train_text, alpha_text, valid_text = texts(case)
    assert [list(text.shape) for text in (train_text, alpha_text, valid_text)] == case["shapes"]
    optimizer = torch.optim.SGD(model.weight_parameters(), args.lr, weight_decay=args.wdecay)
    place = sequences.Place(*(model.init_hidden(case["batch"]) for _ in range(2)))
    step = train_search.search_step(alpha_text, model, learner(model, args), optimizer, place, meters, args)
    np.random.seed(case["numpy_seed"])
    check_steps(model, step, sequences.pieces(train_text, place, args.bptt), meters, case["steps"], 1e-5)

    close(model.alphas.detach(), case["final_alphas"], 1e-5)
    norms(model, case["final_norms"], 1e-5)
    assert optimizer.param_groups[0]["lr"] == case["lr_after"]
    meters = sequences.evaluate(model, valid_text, args.bptt, faithful=True)
    close(meters.loss.avg, case["eval_loss"], 1e-5)
    close(meters.ppl, case["eval_ppl"], 1e-5)


@pytest.mark.parametrize("case", GOLDEN["train"], ids=lambda case: case["arch"])
def test_an_epoch_by_sgd_and_one_by_asgd(case):
    model, args, meters = network(case), loop_arguments(case), sequences.Meters()
    train_text, _, valid_text = texts(case)
    sgd = torch.optim.SGD(model.parameters(), args.lr, weight_decay=args.wdecay)
    asgd = torch.optim.ASGD(model.parameters(), args.lr, t0=0, lambd=0.0, weight_decay=args.wdecay)
    place = sequences.Place(model.init_hidden(case["batch"]))
    step = sequences.weight_step(model, place, meters, args)
    np.random.seed(case["numpy_seed"])
    for name, optimizer in (("sgd", sgd), ("asgd", asgd)):
        place.begin()
        pieces = sequences.pieces(train_text, place, args.bptt, args.bptt + case["max_seq_len_delta"])
        check_steps(model, partial(step, optimizer), pieces, meters, case[f"{name}_steps"], 1e-8)
        norms(model, case[f"{name}_norms"], 1e-8)
        with train.averaged(model, asgd):
            norms(model, case.get(f"{name}_average_norms", {}), 1e-8)
            evaluated = sequences.evaluate(model, valid_text, args.bptt, faithful=True)
            close(evaluated.loss.avg, case[f"{name}_eval_loss"], 1e-8)
        norms(model, case[f"{name}_norms"], 1e-8)


@pytest.mark.parametrize("case", GOLDEN["evaluate"], ids=lambda case: f"batch{case['batch']}")
def test_evaluation(case):
    model = network(case)
    text = data.batchify(stream(case["seed"], case["tokens"], case["ntokens"]), case["batch"], "")
    assert list(text.shape) == case["shape"]
    faithful, right = (sequences.evaluate(model, text, case["bptt"], faithful) for faithful in (True, False))
    close(faithful.loss.avg, case["loss"], 1e-9)
    close(faithful.ppl, case["ppl"], 1e-9)
    close(right.loss.avg, case["mean_over_predictions"], 1e-9)


def test_lengths_of_sequences():
    for case in GOLDEN["seq_lens"]:
        for script, longest in (("train_search.py", None), ("train.py", case["bptt"] + case["max_seq_len_delta"])):
            np.random.seed(case["numpy_seed"])
            assert [data.sequence_length(case["bptt"], longest) for _ in case[script]] == case[script]


@pytest.mark.parametrize("case", GOLDEN["corpus"], ids=["first", "second"])
def test_a_corpus_and_its_batches(case, tmp_path):
    for part in data.PARTS:
        (tmp_path / f"{part}.txt").write_text(case[part])
    corpus = data.load("ptb", str(tmp_path))
    assert corpus.words == case["words"]
    assert [getattr(corpus, part).tolist() for part in data.PARTS] == [case[f"{part}_ids"] for part in data.PARTS]
    text = data.batchify(corpus.train, case["batch"], "")
    assert text.tolist() == case["batchified_train"]
    x, y = data.get_batch(text, case["position"], case["seq_len"] or case["bptt"])
    assert (x.tolist(), y.tolist()) == (case["get_batch_data"], case["get_batch_target"])


def test_when_asgd_takes_over():
    for case in GOLDEN["asgd_switch"]:
        losses, after, nonmono = case["val_losses"], case["switch_after_epoch"], case["nonmono"]
        taken_over = [train.averaging(losses[:epoch], nonmono) for epoch in range(after - 1, len(losses) + 1)]
        assert taken_over == [False] + [True] * (len(losses) + 1 - after)


def test_the_defaults_are_the_original_s(monkeypatch):
    """Of every flag of the original that is a number."""
    facts = GOLDEN["facts"]["flags"]
    for name, module in (("train_search.py", train_search), ("train.py", train)):
        monkeypatch.setattr("sys.argv", [name])
        args = vars(module.parse_arguments())
        unread = {"--nonmono", "--max_seq_len_delta"} if module is train_search else set()
        unread |= {"--small_batch_size", "--nhid", "--nhidlast", "--data", "--save", "--log-interval", "--arch"}
        for flag, fact in facts[name].items():
            if flag not in unread and "action" not in fact:
                assert args[flag[2:]] == fact["default"], flag
