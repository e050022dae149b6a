"""Everything that the original's recurrent code computes, in float64 (tests/golden/darts_rnn.json)."""

from functools import partial
from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import close

import rnn.sequences
from rnn import data, train, train_search
from rnn.architect import FAULTS, alpha_step, learner
from rnn.genotypes import Genotype, RecurrentCell
from rnn.model import Dropouts, Masks, RNNModel
from rnn.model_search import RNNModelSearch

GOLDEN = golden.load("darts_rnn.json")

pytestmark = pytest.mark.usefixtures("double")


def tokens(seed, T, B, V):
    r = np.random.RandomState(seed)
    return torch.as_tensor(r.randint(0, V, (T, B))), torch.as_tensor(r.randint(0, V, (T, B)))


def hidden_state(seed, B, H):
    return torch.as_tensor(0.5 * np.random.RandomState(seed).randn(1, B, H))


def make_masks(seed, p, V, B, H):
    r = np.random.RandomState(seed)

    def mask(p, *shape):
        return torch.as_tensor((r.rand(*shape) < 1 - p) / (1 - p))

    return Masks(
        mask(p.dropoute, V, 1),
        mask(p.dropouti, 1, B, H),
        mask(p.dropoutx, B, H),
        mask(p.dropouth, B, H),
        mask(p.dropout, 1, B, H),
    )


def dropouts(case):
    return Dropouts(**{name: case[name] for name in Dropouts._fields}) if case else Dropouts()


def search_model(case, p=Dropouts()):  # noqa: B008
    model = RNNModelSearch(case["ntokens"], case["size"], p)
    golden.fill(model)
    with torch.no_grad():
        model.alphas.copy_(
            torch.as_tensor(case["alpha_scale"] * np.random.RandomState(case["alpha_seed"]).randn(36, 5))
        )
    return model


def discrete_model(case, genotype=None):
    model = RNNModel(case["ntokens"], case["size"], Dropouts(), genotype or RecurrentCell.names()[case["arch"]])
    golden.fill(model)
    return model


def json_form(genotype):
    return {"recurrent": [list(edge) for edge in genotype.recurrent], "concat": list(genotype.concat)}


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
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters() if name != "alphas"}
    assert norms.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        close(norms[name], norm, 1e-8)
    if "alpha_grad" in expected:
        close(model.alphas.grad, expected["alpha_grad"], 1e-8)
    if "running_mean" in expected:
        close(model.rnns[0].bn.running_mean, expected["running_mean"], 1e-9)
        close(model.rnns[0].bn.running_var, expected["running_var"], 1e-9)


@pytest.mark.parametrize("mode", ["train", "eval", "masked"])
@pytest.mark.parametrize("case", GOLDEN["search"], ids=lambda case: f"H{case['size']}-seed{case['alpha_seed']}")
def test_search_network(case, mode):
    if mode not in case:
        pytest.skip("this case has no such pass")
    model, seed = search_model(case), case["alpha_seed"]
    x, y = tokens(seed + 1, case["bptt"], case["batch"], case["ntokens"])
    hidden = hidden_state(seed + 2, case["batch"], case["size"])
    masks = None
    if mode == "masked":
        masks = make_masks(case[mode]["mask_seed"], dropouts(case[mode]), case["ntokens"], case["batch"], case["size"])
    check_pass(model.train(mode != "eval"), x, y, hidden, masks, case[mode])
    close(F.softmax(model.alphas[0].detach(), -1), case["probs_first_row"], 1e-9)
    assert json_form(model.genotype()) == case["genotype"]
    if mode == "train":
        genotype = Genotype(**case["genotype"])
        check_pass(discrete_model(case, genotype), x, y, hidden, None, case["derived_train"])


@pytest.mark.parametrize("mode", ["train", "eval", "masked"])
@pytest.mark.parametrize("case", GOLDEN["discrete"], ids=lambda case: case["arch"])
def test_discrete_network(case, mode):
    model, seed, sizes = discrete_model(case), case["seed"], (case["ntokens"], case["batch"], case["size"])
    x, y = tokens(seed + 1, case["bptt"], case["batch"], case["ntokens"])
    masks = make_masks(case[mode]["mask_seed"], dropouts(case[mode]), *sizes) if mode == "masked" else None
    check_pass(model.train(mode != "eval"), x, y, hidden_state(seed + 2, *sizes[1:]), masks, case[mode])
    if mode == "eval":
        with torch.no_grad():
            log_prob, *_ = model(x, model.init_hidden(case["batch"]))
            close(F.nll_loss(log_prob.flatten(0, 1), y.flatten()), case["zero_hidden_eval_loss"], 1e-9)


def both_texts(case):
    """A training and a validation text, each with the state before it."""
    seed, B, V, H = case["alpha_seed"], case["batch"], case["ntokens"], case["size"]
    train = *tokens(seed + 10, case["bptt"], B, V), hidden_state(seed + 20, B, H)
    valid = *tokens(seed + 100, case["bptt_valid"], B, V), hidden_state(seed + 30, B, H)
    return train, valid


def alphas_step(case, model, unrolled, faults=FAULTS):
    """The hidden state after a step of the alphas on both texts."""
    given = {name: case[name] for name in ("clip", "wdecay", "arch_lr", "arch_wdecay")}
    args = SimpleNamespace(hvp="finite_difference", unrolled=unrolled, **given)
    return alpha_step(learner(model, args), model, *both_texts(case), case["lr"], args, faults)


@pytest.mark.parametrize("order", ["first_order", "second_order"])
@pytest.mark.parametrize("case", GOLDEN["architect"], ids=lambda case: f"lr{case['lr']}-clip{case['clip']}")
def test_a_step_of_the_alphas(case, order):
    model, expected, tolerance = search_model(case), case[order], 1e-8 if order == "first_order" else 1e-6
    hidden = alphas_step(case, model, order == "second_order")
    close(model.alphas.grad, expected["alpha_grad"], tolerance)
    close(model.alphas.detach(), expected["alphas_after"], tolerance)
    close(hidden[0], expected["hidden_next"], tolerance)
    state = model.state_dict()
    for name in ("running_mean", "running_var"):
        close(state[f"rnns.0.bn.{name}"], expected[name], tolerance)
    for name, norm in expected["norms_after"].items():
        close(state[name].norm(), norm, 1e-9)


@pytest.mark.parametrize(
    ("fault", "name"), [("tied", "tied_matrix_stepped_too"), ("coefficient", "coefficient_capped_at_1")]
)
@pytest.mark.parametrize("case", GOLDEN["architect"], ids=lambda case: f"lr{case['lr']}-clip{case['clip']}")
def test_a_step_of_the_alphas_without_one_fault(case, fault, name):
    if name not in case["not_the_original"]:
        pytest.skip("the coefficient of this case is below 1")
    model = search_model(case)
    alphas_step(case, model, True, set(FAULTS) - {fault})
    close(model.alphas.grad, case["not_the_original"][name]["alpha_grad"], 1e-6)


@pytest.mark.parametrize(
    "kind", ["first_order", "second_order_masks_redrawn", "not_the_original_same_masks_in_both_passes"]
)
def test_a_step_of_the_alphas_with_dropout(kind, monkeypatch):
    [case] = [case for case in GOLDEN["architect"] if "masked" in case]
    expected, p = case["masked"][kind], dropouts(case["masked"])
    first = case["masked"]["mask_seed"]
    seeds = iter([first, first + 1, first + 2, first + 2 if "same_masks" in kind else first + 3])
    model = search_model(case, p)
    monkeypatch.setattr(model, "draw_masks", lambda B: make_masks(next(seeds), p, case["ntokens"], B, case["size"]))
    hidden = alphas_step(case, model, kind != "first_order")
    close(model.alphas.grad, expected["alpha_grad"], 1e-8 if kind == "first_order" else 1e-6)
    close(hidden[0], expected["hidden_next"], 1e-8)


@pytest.mark.parametrize("case", GOLDEN["sizes"], ids=lambda case: f"{case.get('arch', 'search')}-{case['ntokens']}")
def test_sizes_and_names(case):
    with torch.device("meta"):
        if case["kind"] == "search":
            model = RNNModelSearch(case["ntokens"], case["size"], Dropouts())
        else:
            model = RNNModel(case["ntokens"], case["size"], Dropouts(), RecurrentCell.names()[case["arch"]])
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
        assert golden.keys_shapes(RNNModel(*sizes, RecurrentCell.names()[name])) == case[name]
        assert json_form(RecurrentCell.names()[name]) == GOLDEN["facts"]["genotypes"][name]
    assert "alphas" in search.state_dict()


def test_genotypes_derived_from_alphas():
    model = RNNModelSearch(5, 2, Dropouts())
    for case in GOLDEN["genotypes_of_alphas"]:
        with torch.no_grad():
            model.alphas.copy_(torch.as_tensor(case["scale"] * np.random.RandomState(case["seed"]).randn(36, 5)))
        assert json_form(model.genotype()) == {"recurrent": case["recurrent"], "concat": case["concat"]}
    with torch.no_grad():
        model.alphas.zero_()
    assert json_form(model.genotype()) == GOLDEN["genotype_of_zero_alphas"]


def stream(seed, count, V):
    return torch.as_tensor(np.random.RandomState(seed).randint(0, V, count))


def texts(case):
    """Training text, validation text for the alphas, and validation text to evaluate on."""
    train, valid = (
        stream(case["seed"] + number, case[f"{part}_tokens"], case["ntokens"])
        for number, part in enumerate(("train", "valid"), 1)
    )
    return (
        data.batchify(train, case["batch"], ""),
        data.batchify(valid, case["batch"], ""),
        data.batchify(valid, case["eval_batch"], ""),
    )


def loop_arguments(case, **more):
    names = ("lr", "clip", "wdecay", "bptt", "arch_lr", "arch_wdecay", "unrolled")
    given = {name: case[name] for name in names if name in case}
    return SimpleNamespace(
        **given, alpha=case["ar_alpha"], beta=case["tar_beta"], report_freq=10**6, faithful=True, **more
    )


def watched(steps, monkeypatch):
    """Notes the gradient's norm before clipping, and loss and regularised loss of every step."""
    clip, losses = torch.nn.utils.clip_grad_norm_, rnn.sequences.losses

    def noted_losses(*arguments):
        loss, regularised, hidden = losses(*arguments)
        steps.append({"raw_loss": loss.detach(), "loss": regularised.detach()})
        return loss, regularised, hidden

    def noted_clip(*arguments):
        steps[-1]["grad_norm"] = clip(*arguments)
        return steps[-1]["grad_norm"]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted_clip)
    monkeypatch.setattr(rnn.sequences, "losses", noted_losses)


def noted_pieces(steps, *arguments):
    for row, length, x, y in rnn.sequences.pieces(*arguments):
        yield row, length, x, y
        steps[-1] |= {"position": row, "seq_len": length, "rows": len(x)}


def learn(model, step, batches):
    """An epoch, as `Loop.train` makes it."""
    model.train()
    for batch in batches:
        step(*batch)


def check_steps(steps, expected, lr, bptt, tolerance):
    assert len(steps) == len(expected)
    for step, row in zip(steps, expected, strict=True):
        assert {name: step[name] for name in ("position", "seq_len", "rows")} == {
            name: row[name] for name in ("position", "seq_len", "rows")
        }
        assert lr * step["seq_len"] / bptt == pytest.approx(row["lr_scaled"], rel=1e-12)
        for name in ("raw_loss", "loss", "grad_norm"):
            close(step[name], row[name], tolerance)


@pytest.mark.parametrize(
    "case", GOLDEN["train_search"], ids=lambda case: f"unrolled-{case['unrolled']}-lr{case['lr']}-{case['numpy_seed']}"
)
def test_an_epoch_of_the_search(case, monkeypatch):
    model, args, steps, gradients = search_model(case), loop_arguments(case, hvp="finite_difference"), [], []
    train_text, alpha_text, valid_text = texts(case)
    assert [list(text.shape) for text in (train_text, alpha_text, valid_text)] == case["shapes"]
    architect = learner(model, args)
    descend = architect.descend
    monkeypatch.setattr(
        architect, "descend", lambda gradient: (gradients.append(gradient[0].clone()), descend(gradient))
    )
    watched(steps, monkeypatch)
    optimizer = torch.optim.SGD(model.weight_parameters(), args.lr, weight_decay=args.wdecay)
    place = rnn.sequences.Place(*(model.init_hidden(case["batch"]) for _ in range(2)))
    np.random.seed(case["numpy_seed"])
    batches = noted_pieces(steps, train_text, place, args.bptt)
    learn(
        model,
        train_search.search_step(alpha_text, model, architect, optimizer, place, rnn.sequences.Meters(), args),
        batches,
    )

    check_steps(steps, case["steps"], args.lr, args.bptt, 1e-5)
    for gradient, row in zip(gradients, case["steps"], strict=True):
        close(gradient.norm(), row["alpha_grad_norm"], 1e-5)
        if "alpha_grad" in row:
            close(gradient, row["alpha_grad"], 1e-5)
    close(model.alphas.detach(), case["final_alphas"], 1e-5)
    for name, norm in case["final_norms"].items():
        close(model.state_dict()[name].norm(), norm, 1e-5)
    assert optimizer.param_groups[0]["lr"] == case["lr_after"]
    loss = rnn.sequences.evaluate(model, valid_text, args.bptt, faithful=True)
    close(loss, case["eval_loss"], 1e-5)
    close(rnn.sequences.perplexity(loss), case["eval_ppl"], 1e-5)


@pytest.mark.parametrize("case", GOLDEN["train"], ids=lambda case: case["arch"])
def test_an_epoch_by_sgd_and_one_by_asgd(case, monkeypatch):
    model, args = discrete_model(case), loop_arguments(case)
    train_text, _, valid_text = texts(case)
    sgd = torch.optim.SGD(model.parameters(), args.lr, weight_decay=args.wdecay)
    asgd = torch.optim.ASGD(model.parameters(), args.lr, t0=0, lambd=0.0, weight_decay=args.wdecay)
    place = rnn.sequences.Place(model.init_hidden(case["batch"]))
    np.random.seed(case["numpy_seed"])
    steps = []
    watched(steps, monkeypatch)
    for name, optimizer in (("sgd", sgd), ("asgd", asgd)):
        steps.clear()
        place.begin()
        batches = noted_pieces(steps, train_text, place, args.bptt, args.bptt + case["max_seq_len_delta"])
        step = rnn.sequences.weight_step(model, place, rnn.sequences.Meters(), args)
        learn(model, partial(step, optimizer), batches)
        check_steps(steps, case[f"{name}_steps"], args.lr, args.bptt, 1e-8)
        state = model.state_dict()
        for key, norm in case[f"{name}_norms"].items():
            close(state[key].norm(), norm, 1e-8)
        with train.averaged(model, asgd):
            for key, norm in case.get(f"{name}_average_norms", {}).items():
                close(model.state_dict()[key].norm(), norm, 1e-8)
            close(rnn.sequences.evaluate(model, valid_text, args.bptt, faithful=True), case[f"{name}_eval_loss"], 1e-8)
        for key, norm in case[f"{name}_norms"].items():
            close(model.state_dict()[key].norm(), norm, 1e-8)


@pytest.mark.parametrize("case", GOLDEN["evaluate"], ids=lambda case: f"batch{case['batch']}")
def test_evaluation(case):
    model = discrete_model(case)
    text = data.batchify(stream(case["seed"], case["tokens"], case["ntokens"]), case["batch"], "")
    assert list(text.shape) == case["shape"]
    loss = rnn.sequences.evaluate(model, text, case["bptt"], faithful=True)
    close(loss, case["loss"], 1e-9)
    close(rnn.sequences.perplexity(loss), case["ppl"], 1e-9)
    close(rnn.sequences.evaluate(model, text, case["bptt"], faithful=False), case["mean_over_predictions"], 1e-9)


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
        losses, after = case["val_losses"], case["switch_after_epoch"]
        assert not train.averaging(losses[: after - 1], case["nonmono"])
        assert all(train.averaging(losses[:epoch], case["nonmono"]) for epoch in range(after, len(losses) + 1))
        until = losses[:after]
        assert [epoch for epoch, loss in enumerate(until, 1) if loss < min(until[: epoch - 1], default=9)] == case[
            "saved_epochs_until_then"
        ]


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
