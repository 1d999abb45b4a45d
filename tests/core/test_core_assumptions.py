"""What is assumed of a module and its data: refused by name where it does not hold."""

import copy

import pytest
import torch
import torch.nn.functional as F
from central_differences import jacobian, relative
from read_layer import Layers
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from geolib.core import (
    AssumptionError,
    PullbackMetric,
    Realization,
    init_,
    normal,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
]
METHODS = ("cholesky", "woodbury", "cg", "nystrom", "kfac")


class Between(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, middle):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.middle = middle
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0

    def again(self, h):
        return torch.tanh(torch.tanh(h) * self.b.weight[0])

    def forward(self, x):
        return self.b(self.middle(self, torch.tanh(self.a(x))))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Doubled(torch.autograd.Function):
    """A straight line whose gradient is wrong by a factor of two."""

    @staticmethod
    def forward(ctx, a):
        return a * 1.0

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def counted(net, h):
    net.calls += 1
    return h * net.calls


def noted(net, h):
    net.seen.add_(h.detach().mean(0))
    return h


def clamped(net, h):
    net.b.weight.data.clamp_(-0.01, 0.01)
    return h


def unit_length(net, h):
    with torch.no_grad():
        size = h.norm(dim=1, keepdim=True)
    return h / size


def standardised(net, h):
    return (h - h.mean(0)) / (h.std(0) + 1)


def remembered(net, h):
    net.first = getattr(net, "first", h.mean())
    return h * net.first


def rebuffered(net, h):
    net.seen = net.seen + 1
    return h * net.seen


def clipped(net, h):
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-100, 100))
    return h


def shifted(net, h):
    if h.requires_grad:
        h.register_hook(lambda g: g + 1e4)
    return h


def changed_after_use(net, h):
    y = net.b(h)
    h.mul_(2)
    return h + y.sum(1, keepdim=True)


class Padded(nn.Module):
    """Words with one that stands for none; perhaps read again at the end."""

    def __init__(self, again):
        super().__init__()
        self.embed, self.read = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 5)
        self.again = again

    def forward(self, x):
        h = torch.tanh(self.embed(x)).sum(1)
        return h @ self.embed.weight.T if self.again else self.read(h)


WORDS = torch.tensor([[1, 2], [3, 2], [4, 0], [0, 0]])
X = (6, 3)


def remembering(net, h):
    """A state of as many samples is added, as recurrent nets that go on with it do."""
    was, net.state = getattr(net, "state", None), h.detach()
    return h if was is None or len(was) != len(h) else h + was


REFUSED = {
    "a state that is kept": (
        lambda: Between(remembering), X, "function", "two passes on the same inputs"
    ),
    "place among the samples": (
        lambda: Between(lambda net, h: h * torch.arange(1.0, len(h) + 1)[:, None]),
        X, "samples", r"on its place.*\(Between\)",
    ),
    "number of samples": (
        lambda: Between(lambda net, h: h / len(h)), X, "samples", "how many samples"
    ),
    "mean of three or more": (
        lambda: Between(lambda net, h: h - h.mean(0) if len(h) > 2 else h),
        X, "samples", "how many samples",
    ),
    "memory of the first batch": (
        lambda: Between(remembered), X, "samples", r"\(Between\)"
    ),
    "another buffer": (lambda: Between(rebuffered), X, "state", "sets the buffer 'seen'"),
    "clipped gradients": (lambda: Between(clipped), X, "derivative", None),
    "gradients with an offset": (
        lambda: Between(shifted), X, "derivative", None
    ),
    "input changed after use": (
        lambda: Between(changed_after_use), X, "derivative", "modified by an inplace",
    ),
    "padding that is read again": (
        lambda: Padded(True), WORDS, "derivative", "row for padding.*read by.* too"
    ),
    "dropout": (lambda: Between(lambda net, h: F.dropout(h)), X, "function", "'dropout'"),
    "noise": (
        lambda: Between(lambda net, h: h + 0.1 * torch.randn_like(h)),
        X, "function", r"layer '\(root\)' \(Between\) in its call of 'randn_like'",
    ),
    "noise that cancels": (
        lambda: Between(lambda net, h: h + 0 * torch.rand(4)), X, "function", "'rand'"
    ),
    "counter": (lambda: Between(counted), X, "function", "in its call of 'mul'"),
    "max_norm": (
        lambda: Layers(nn.Embedding(5, 3, max_norm=0.5), 3, False),
        torch.tensor([0, 1, 2, 3]), "state", r"layer 'layer' \(Embedding\)",
    ),
    "max_norm of a bag": (
        lambda: Layers(nn.EmbeddingBag(5, 3, max_norm=0.5), 3, False),
        torch.tensor([[0, 1], [2, 3]]), "state", r"'layer.weight'.*\(EmbeddingBag\)",
    ),
    "statistics": (lambda: Between(noted), X, "state", "'seen'"),
    "clamp by data": (lambda: Between(clamped), X, "state", r"'b.weight'.*'b' \(Linear\)"),
    "inputs": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)),
        X, "state", "writes to 'input 0'",
    ),
    "attention over samples": (
        lambda: Layers(nn.MultiheadAttention(4, 2), 4),
        (5, 3, 4), "samples", r"layer 'layer' \(MultiheadAttention\)",
    ),
    "recurrence over samples": (
        lambda: Layers(nn.LSTM(4, 3), 3), (5, 3, 4), "samples", r"\(LSTM\)"
    ),
    "batch maximum": (
        lambda: Between(lambda net, h: h / h.abs().max()), X, "samples", r"\(Between\)"
    ),
    "batch statistics": (lambda: Between(standardised), X, "samples", r"\(Between\)"),
    "one row": (
        lambda: Between(lambda net, h: h.mean(0, keepdim=True)),
        X, "samples", "2 samples gave 1 rows",
    ),
    "once": (
        lambda: Between(lambda net, h: Once.apply(h)), X, "derivative", "Function.*Once"
    ),
    "a root at zero": (
        lambda: Between(lambda net, h: h.relu().mul(0).sqrt()),
        X, "derivative", "it is not finite",
    ),
    "wrong backward": (
        lambda: Between(lambda net, h: Doubled.apply(h)),
        X, "derivative", "Function.*Doubled",
    ),
    "no_grad": (lambda: Between(unit_length), X, "derivative", r"\(Between\).*'norm'"),
    "detach": (
        lambda: Between(lambda net, h: h * h.detach()), X, "derivative", "'detach'"
    ),
    "a weight without its gradient": (
        lambda: Between(lambda net, h: h * net.b.weight.data[0]),
        X, "derivative", None,
    ),
}  # fmt: skip


def data(shape, dtype=torch.float64):
    return shape if isinstance(shape, torch.Tensor) else normal(shape, 1).to(dtype)


USES = {
    "call": lambda R, x: R(R.theta0, x),
    "linearize": lambda R, x: R.linearize(R.theta0, x),
    "metric": lambda R, x: PullbackMetric(R, x).at(R.theta0).dense(),
    "product": lambda R, x: PullbackMetric(R, x, batch_size=2).at(R.theta0) @ R.theta0,
}


def everything(module):
    held = {n: t.clone() for n, t in module.state_dict().items()}
    mode = [m.training for m in module.modules()]
    attributes = [dict(vars(m)) for m in module.modules()]
    return held, mode, attributes, torch.get_rng_state()


def require_untouched(module, before):
    held, mode, attributes, random = before
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in module.modules()] == mode
    for name, t in module.state_dict().items():
        assert torch.equal(t, held[name]), name
    for m, was in zip(module.modules(), attributes, strict=True):
        assert vars(m).keys() == was.keys()
        assert all(vars(m)[k] is v for k, v in was.items())


@pytest.mark.slow_for("*-f32")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_hold_is_refused_by_name_and_nothing_is_written(name, dtype):
    build, shape, assumption, message = REFUSED[name]
    module, x = init_(build().to(dtype), 0, bias_scale=0.3), data(shape, dtype)
    before, given = everything(module), x.clone()
    for use in USES.values():
        R = Realization(module)
        theta = R.theta0.clone()
        with pytest.raises(AssumptionError, match=message) as caught:
            use(R, x)
        assert caught.value.assumption == assumption
        assert torch.equal(R.theta0, theta)
        assert torch.equal(x, given)
        require_untouched(module, before)
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.raises(AssumptionError, match=message):
            R(R.theta0, x)


def test_a_closure_is_checked_as_well():
    module, x = init_(Between(unit_length).double(), 0), data(X)
    R = Realization(module)
    with R.recording() as record:
        module(x)
    with pytest.raises(AssumptionError, match="'norm'"):
        record.linearization()


def test_who_knows_leaves_the_check_out():
    module, x = init_(Between(unit_length).double(), 0), data(X)
    R = Realization(module, check=False)
    torch.testing.assert_close(R(R.theta0, x), module(x))
    assert PullbackMetric(module, x, check=False).at(R.theta0).dense().isfinite().all()
    with pytest.raises(AssumptionError):
        PullbackMetric(module, x).at(R.theta0).dense()


# ---- what does hold, against central differences -------------------------------------


class Sharing(nn.Module):
    """Layers a and b of one width, with what they share, and a norm."""

    def __init__(self, share):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)
        self.conv = nn.Conv1d(3, 3, 1)
        share(self)

    def forward(self, x):
        h = self.norm(self.b(torch.tanh(self.a(x))))
        return self.conv(torch.tanh(h)[..., None])[..., 0] + self.a(h)


def both(net):
    net.b.weight, net.b.bias = net.a.weight, net.a.bias


def crossed(net):
    net.conv.bias, net.norm.bias = net.a.bias, net.a.bias


def frozen(net):
    net.a.weight.requires_grad_(False)
    net.b.bias = net.a.bias
    net.norm.bias.requires_grad_(False)


def across(net):
    net.norm.weight = net.a.bias


class Tied(nn.Module):
    """Token embeddings that are also the last layer's weights, in place in between."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.read.weight = self.embed.weight
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        h = self.embed(x).sum(1)
        h += torch.tanh(h)
        return self.read(F.relu_(h.mul_(0.7)))


def hooked(wrap, **options):
    def build():
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        wrap(net[0], **options)
        return net.eval()

    return build


def input_gradient(net, h):
    with torch.enable_grad():
        q = h if h.requires_grad else h.detach().requires_grad_()
        energy = net.b(torch.tanh(net.a(q[:, :3]))).sum()
        return torch.autograd.grad(energy, q, create_graph=True)[0] + h


def growing(net, h):
    if len(getattr(net, "ones", ())) < len(h):
        net.register_buffer("ones", torch.ones(len(h), 1).double())
    return h * net.ones[: len(h)]


def conv_bias(net):
    net.conv.bias = net.a.bias


def under_two_names(net):
    net.b = net.a


def both_ways(net):
    net.b, net.norm.bias = net.a, net.a.bias


RIGHT = {
    "bias of a convolution": lambda: Sharing(conv_bias),
    "a module under two names": lambda: Sharing(under_two_names),
    "and its bias elsewhere": lambda: Sharing(both_ways),
    "gradient in the inputs": lambda: Between(input_gradient),
    "in place": lambda: nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 4),
        nn.Hardtanh(inplace=True), nn.Linear(4, 2),
    ),
    "weights": lambda: Sharing(lambda net: setattr(net.b, "weight", net.a.weight)),
    "biases": lambda: Sharing(lambda net: setattr(net.b, "bias", net.a.bias)),
    "both": lambda: Sharing(both),
    "crossed": lambda: Sharing(crossed),
    "across": lambda: Sharing(across),
    "frozen": lambda: Sharing(frozen),
    "tied": Tied,
    "weight_norm": hooked(weight_norm),
    "new weight_norm": hooked(parametrizations.weight_norm),
    "spectral_norm": hooked(spectral_norm),
    "new spectral_norm": hooked(parametrizations.spectral_norm),
    "pruned": hooked(prune.l1_unstructured, name="weight", amount=4),
    "orthogonal": hooked(parametrizations.orthogonal),
    "no second derivative": lambda: Between(lambda net, h: F.hardsigmoid(h)),
    "checkpoint": lambda: Between(
        lambda net, h: checkpoint(net.again, h, use_reentrant=False)
    ),
    "reentrant checkpoint": lambda: Between(
        lambda net, h: checkpoint(net.again, h, use_reentrant=True)
    ),
    "a parameter without entries": lambda: Sharing(
        lambda net: net.register_parameter("none", nn.Parameter(torch.zeros(0)))
    ),
    "stable softmax": lambda: Between(
        lambda net, h: (h - h.max(1, keepdim=True)[0].detach()).softmax(1)
    ),
    "dropout without a rate": lambda: Between(lambda net, h: F.dropout(h, 0.0)),
    "its own counter": lambda: Between(lambda net, h: h + 0 * counted(net, h)),
    "its own cache": lambda: Between(lambda net, h: setattr(net, "last", h) or h),
    "a buffer that grows": lambda: Between(growing),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_every_product_and_solve_is_right(name):
    module = init_(RIGHT[name]().double(), 0, bias_scale=0.3)
    x = torch.tensor([[0, 1], [2, 2], [4, 0]]) if name == "tied" else data(X)
    with torch.no_grad():
        expected = module(x)
    before = everything(module)
    R = Realization(module)
    torch.testing.assert_close(R(R.theta0, x), expected)
    moved = copy.deepcopy(module)
    J = jacobian(moved, lambda: moved(x))
    D = torch.einsum("iap,iaq->pq", J, J) / len(J)
    L, G = R.linearize(R.theta0, x), PullbackMetric(R, x).at(R.theta0)
    v, u = normal(R.p, 1), normal(tuple(L.outputs.shape), 2)
    assert relative(L.jvp(v), J @ v) < 1e-8
    assert relative(L.vjp(u), torch.einsum("nop,no->p", J, u)) < 1e-8
    assert relative(G @ v, D @ v) < 1e-8
    assert relative(G.dense(), D) < 1e-8
    x = torch.linalg.solve(D + 0.1 * torch.eye(R.p), v)
    for method in METHODS:
        assert relative(G.solve(v, 0.1, method, tol=1e-12).x, x) < 1e-7, method
    require_untouched(module, before)


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_rows_are_right_where_torch_mixes_axes_of_one_length(n, outputs):
    """vmap in vmap over PReLU gives other rows for as many samples as outputs."""
    module = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, outputs))
    module, x = init_(module.double(), 0, bias_scale=0.3), data((n, 3))
    R = Realization(module)
    moved = copy.deepcopy(module)
    J = jacobian(moved, lambda: moved(x))
    G = PullbackMetric(R, x).at(R.theta0)
    assert relative(G.dense(), torch.einsum("iap,iaq->pq", J, J) / n) < 1e-8


def test_inputs_that_cannot_be_told_apart_sample_by_sample():
    R, x = Realization(nn.Linear(3, 2).double()), data(X)
    for given, said in (
        ((x, x[:4]), r"one common leading axis.*a mask is.*leading sizes \[4, 6\]"),
        ({"input": x, "parts": [x]}, "got 'list of tensors'"),
        ((x, {"a": x}), "got 'dict of tensors'"),
        (x[:0], "x: expected at least one sample"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            R.linearize(R.theta0, given)


def test_keywords_go_through_a_module_that_wraps_another():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, *args, **keywords):
            return self.inner(*args, **keywords)

    R, x = Realization(Wrapper().double()), data(X)
    assert torch.equal(R(R.theta0, {"input": x}), R(R.theta0, x))


def test_a_buffer_that_a_pass_makes_is_not_left_with_the_module():
    module = init_(Between(growing).double(), 0)
    R = Realization(module)
    for n in (3, 6):
        R(R.theta0, data((n, 3)))
        assert [name for name, _ in module.named_buffers()] == ["seen"]


def test_a_row_for_padding_has_no_derivative():
    module = init_(Padded(False).double(), 0, bias_scale=0.3)
    R, moved = Realization(module), copy.deepcopy(module)
    J = jacobian(moved, lambda: moved(WORDS))
    assert float(J[..., :3].norm()) > 0.1
    J[..., :3] = 0  # the row for padding, which comes first
    L, u = R.linearize(R.theta0, WORDS), normal((4, 5), 2)
    v = normal(R.p, 1)
    assert relative(L.jvp(v), J @ v) < 1e-8
    assert relative(L.vjp(u), torch.einsum("nop,no->p", J, u)) < 1e-8
    G = PullbackMetric(R, WORDS).at(R.theta0)
    assert relative(G.dense(), torch.einsum("iap,iaq->pq", J, J) / 4) < 1e-8


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: nn.Embedding(4, 2, scale_grad_by_freq=True), "scaled gradients"),
        (
            lambda: nn.DataParallel(nn.Linear(3, 2)),
            r"DataParallel.*expected its .\.module",
        ),
        (
            lambda: torch.jit.script(nn.Linear(3, 2)),
            r"\(root\) \(RecursiveScriptModule\), whose code is compiled; expected the nn",
        ),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 2))), "calls of 0 "),
    ],
)
def test_modules_that_cannot_be_right_are_refused_by_name(module, said):
    with pytest.raises(ValueError, match=f"module: .*{said}"):
        Realization(module())


@pytest.mark.parametrize(
    "give",
    [
        lambda z: z.argmax(1), lambda z: z > 0, torch.fft.fft, lambda z: (z, z),
        lambda z: {"out": z}, torch.sum, lambda z: z[:, :0],
    ],
)  # fmt: skip
def test_outputs_that_are_no_real_tensor_are_refused_by_name(give):
    R = Realization(Between(lambda net, h: h).double())
    module = R.module
    module.register_forward_hook(lambda m, args, z: give(z))
    with pytest.raises(TypeError, match="module: expected its output"):
        R(R.theta0, data(X))


def test_autocast_changes_no_derivative():
    """Calls in lower precision are not taken apart; what is computed is near."""
    module = init_(Between(lambda net, h: h), 0, bias_scale=0.3)
    x, R = data(X, torch.float32), Realization(module)
    L, u = R.linearize(R.theta0, x), torch.ones(6, 2)
    module.register_forward_hook(lambda m, args, z: z.float())
    with torch.autocast("cpu", torch.bfloat16):
        M = Realization(module, check=False).linearize(R.theta0, x)
        assert M.linear_calls() == []
        assert relative(M.vjp(u), L.vjp(u)) < 0.05
        with pytest.raises(TypeError, match="leave autocast out.*bfloat16"):
            Realization(module.a)(torch.zeros(16), x)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "pruned"])
def test_a_weight_that_a_hook_computes_stays_the_users(name):
    module, x = init_(RIGHT[name]().double(), 0), data(X)
    R = Realization(module)
    own = module[0].weight
    torch.vmap(R, (0, None))(torch.stack([R.theta0, 2 * R.theta0]), x)
    R.linearize(R.theta0, x).jvp(R.theta0)
    assert module[0].weight is own
    with torch.no_grad():
        module(x)
    assert torch.equal(Realization(copy.deepcopy(module)).theta0, R.theta0)


@pytest.mark.parametrize(
    "alias",
    [
        lambda net: setattr(net.b, "weight", nn.Parameter(net.a.weight.data)),
        lambda net: setattr(net.b, "weight", nn.Parameter(net.a.weight.data.t())),
        lambda net: setattr(net.b, "bias", nn.Parameter(net.a.weight.data[1])),
        lambda net: net.register_buffer("twin", net.a.weight.data),
    ],
)
def test_two_parameters_in_one_place_of_memory_are_refused(alias):
    with pytest.raises(ValueError, match=r"'a.weight' and '.*' share memory"):
        Realization(Sharing(alias))
