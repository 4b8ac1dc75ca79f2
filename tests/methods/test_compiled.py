"""Losses by torch.compile are the losses without it; without a compiler all goes on."""

import copy
import functools
import logging
import pickle

import pytest
import torch

from d2kd import Distiller, Teacher
from d2kd.methods import CWD, FGD, PGD, PKD, MCDropout, Methods
from d2kd.methods.compiled import Compiled
from tests import toys


@pytest.fixture(autouse=True)
def anew():
    """The limit of compilations is that of a function, whoever compiles it."""
    torch._dynamo.reset()


def square(x, factor):
    """Two sums, one of them without a gradient."""
    return factor * (x * x).sum(), x.detach().sum()


def losses(compile_losses, **options):
    """Those of two steps, and the gradients, of one distiller."""
    torch.manual_seed(0)
    methods = dict(
        fgd=FGD(uncertainty=MCDropout(), **options), pgd=PGD(), pkd=PKD(), cwd=CWD(tau=2.0)
    )
    teacher = Teacher(toys.retinanet(), None)
    model = Distiller(
        student=toys.retinanet(),
        teacher=teacher,
        methods=Methods(**methods),
        compile_losses=compile_losses,
    )
    torch.manual_seed(1)
    found = []
    for size in (64, 96):  # one compilation for both
        batch = toys.batch(size=(size, size))
        model.zero_grad()
        terms = model(batch)
        sum(terms.values()).backward()
        found.append((terms, {name: p.grad for name, p in model.named_parameters()}))
    for method in model.distillation.values():
        for name in method.compilable:
            function = getattr(method, name)
            assert isinstance(function, Compiled) == compile_losses
            assert not compile_losses or (function.compiled and not function.failed)
            assert not compile_losses or function.fallback is getattr(type(method), name)
    return found


def same(found, expected):
    for (terms, grads), (other_terms, other_grads) in zip(found, expected, strict=True):
        torch.testing.assert_close(terms, other_terms, rtol=1e-4, atol=1e-6)
        assert grads.keys() == other_grads.keys()
        for name, g in grads.items():
            if g is not None:
                torch.testing.assert_close(g, other_grads[name], rtol=1e-3, atol=1e-4, msg=name)


def use(monkeypatch, backend):
    """A compiler that traces as the default one does, in less time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))


def test_same_losses_and_gradients(monkeypatch):
    use(monkeypatch, "aot_eager")
    same(losses(True), losses(False))


def test_with_balance_that_asks_for_gradients_twice(monkeypatch):
    use(monkeypatch, "aot_eager")
    same(losses(True, balance=0.5), losses(False, balance=0.5))


@pytest.mark.slow
def test_same_by_the_default_compiler():
    same(losses(True), losses(False))


def failing(*args, **kwargs):
    raise RuntimeError("no compiler\nhere")


def test_without_a_compiler_the_fallback_runs_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", failing)
    function = Compiled(square, lambda x, factor: "fallback")
    with caplog.at_level(logging.WARNING, "d2kd"):
        assert [function(torch.ones(3), 2), function(torch.ones(3), 2)] == ["fallback"] * 2
    (message,) = caplog.messages
    assert message.startswith("torch.compile failed for square") and message.endswith("no compiler")


def test_an_older_pytorch_has_no_compiler(monkeypatch):
    monkeypatch.delattr(torch, "compile")
    assert Compiled(square, lambda x, factor: "fallback")(torch.ones(3), 2) == "fallback"


def test_a_backward_that_does_not_compile_counts_too(monkeypatch):
    def no_backward(function, **options):
        class Broken(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.sum()

            @staticmethod
            def backward(ctx, g):
                raise RuntimeError("no backward")

        return lambda x, factor: (Broken.apply(x), x.detach())

    monkeypatch.setattr(torch, "compile", no_backward)
    found, _ = Compiled(square, square)(torch.ones(3, requires_grad=True), 2)
    assert found == 6 and found.requires_grad


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_computes_the_same(twin, monkeypatch):
    use(monkeypatch, "eager")
    function, x = Compiled(square, square), torch.arange(3.0, requires_grad=True)
    before = function(x, 2)
    torch.testing.assert_close(twin(function)(x, 2), before)


def test_sizes_share_a_compilation(monkeypatch):
    graphs = []
    backend = lambda graph, _: graphs.append(graph) or graph.forward  # noqa: E731
    use(monkeypatch, backend)
    function = Compiled(square, failing)
    for size in (2, 5, 9, 40):
        function(torch.ones(3, size, requires_grad=True), 2)
    assert len(graphs) == 1 and not function.failed


def test_a_failure_at_a_later_size_ends_it(monkeypatch, caplog):
    graphs = []

    def once(graph, _):
        graphs.append(graph)
        if len(graphs) > 1:
            raise RuntimeError("no second graph")
        return graph.forward

    use(monkeypatch, once)
    function = Compiled(square, lambda x, factor: "fallback")
    x = torch.ones(3, 5, requires_grad=True)
    assert function(x, 2)[0] == 30
    with caplog.at_level(logging.WARNING, "d2kd"):
        assert function(x[:, :1], 2) == function(x, 2) == "fallback"  # one cell
    assert len([x for x in caplog.messages if x.startswith("torch.compile failed")]) == 1


def test_the_limit_of_compilations_ends_it(monkeypatch):
    use(monkeypatch, "eager")
    function = Compiled(square, lambda x, factor: "fallback")
    found = [function(torch.ones((2,) * n, requires_grad=True), 2) for n in range(1, 14)]
    assert found[0] != "fallback" and found[-1] == "fallback"


def test_backward_is_tried_once_there_is_one(monkeypatch):
    use(monkeypatch, "eager")
    function, x = Compiled(square, square), torch.ones(3, requires_grad=True)
    with torch.no_grad():
        function(x, 2)
    assert not function.backward_works
    function(x, 2)
    assert function.backward_works


def test_the_trial_leaves_no_gradient(monkeypatch):
    use(monkeypatch, "eager")
    x = torch.ones(3, requires_grad=True)
    found, _ = Compiled(square, square)(x, 2)
    assert x.grad is None and found == 6
