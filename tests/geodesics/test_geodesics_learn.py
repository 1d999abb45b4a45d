"""Tasks one after another: protocol, methods and their steps against references."""

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module
from geodesics_cases import KNOWN, RIVALS, digits, smooth, vector

from geolib.core import Realization
from geolib.geodesics import learn_sequence
from geolib.geodesics.learners import InvariantPath, Memory, Replay, restrict
from geolib.networks import Table, Task, mlp, split_tasks

COMPARISONS = chapter_module("geodesics", "comparisons")
TWO = [[0, 1], [2, 3]]


def tasks(groups=TWO):
    return split_tasks(digits(), groups)


@pytest.mark.slow_for("penalty*", "elastic*", "replay*", "fine*", "joint", "*chosen*")
@pytest.mark.parametrize("method", sorted(KNOWN))
def test_every_method_pays_the_same_compute(method):
    found = learn_sequence(
        mlp([64, 12, 10]),
        tasks(),
        KNOWN[method],
        memory=20,
        gradient_evaluations=6000,
        replayed=20,
        lr=3e-3,
    )
    assert 0.9 * 12000 <= found.gradient_evaluations <= 1.02 * 12000 + 400
    assert found.table.shape == (2, 2)
    assert np.isnan(found.table[0, 1])
    assert found.table[1, 1] > 0.8
    assert found.stored == (40 if KNOWN[method].needs_memory else 0)


@pytest.mark.slow
def test_memory_keeps_what_fine_tuning_forgets():
    halves = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    scores = {
        m: learn_sequence(
            mlp([64, 32, 10]), tasks(halves), KNOWN[m], gradient_evaluations=19200
        )
        for m in ("fine-tuning", "distilled logits", "invariant path", "joint")
    }
    assert scores["fine-tuning"].average < 0.8
    assert scores["fine-tuning"].forgetting > 0.5
    for name in ("distilled logits", "invariant path", "joint"):
        assert scores[name].average > 0.85
        assert scores[name].forgetting < 0.2


def test_task_scenario_answers_only_the_task_classes():
    found = learn_sequence(
        mlp([64, 32, 10]),
        tasks(),
        "fine-tuning",
        scenario="task",
        gradient_evaluations=6400,
    )
    assert found.average > 0.9


def test_forgetting_by_hand():
    from geolib.geodesics.continual import Learned

    table = np.array([[0.9, np.nan, np.nan], [0.8, 0.7, np.nan], [0.5, 0.75, 0.6]])
    found = Learned(torch.zeros(1), table, 0, 0)
    assert found.average == pytest.approx((0.5 + 0.75 + 0.6) / 3)
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.7 - 0.75)) / 2)


def test_invariant_step_against_the_dense_formula():
    R, w, x = smooth()
    learner = InvariantPath(
        R, 5, "class", 4, 0, damping=0.3, iterations=300, space="logit"
    )
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    task = Task(x, y, x, y, (0, 1, 2, 3))
    learner.start_task(w, task)
    everything = torch.ones(4, dtype=torch.bool)
    learner.memory.store(
        task, (R(w, x) + vector(4, 1))[:5], everything, torch.arange(5)
    )
    mem_x, mem_z = learner.memory.x, learner.memory.z
    C = torch.eye(4, dtype=torch.float64) - 0.25
    J = torch.func.jacrev(lambda u: R(u, mem_x))(w)
    CJ = torch.einsum("ij,njp->nip", C, J).reshape(-1, len(w)) / 5**0.5
    gap = ((R(w, mem_x) - mem_z) @ C).reshape(-1) / 5**0.5
    loss = torch.nn.functional.cross_entropy
    grad = torch.func.grad(lambda u: loss(R(u, x), y))(w)
    rhs = 0.3 * grad / max(1.0, grad.norm().item()) + CJ.T @ gap
    dense = torch.linalg.solve(CJ.T @ CJ + 0.3 * torch.eye(len(w)), rhs)
    assert torch.allclose(learner.step(w, x, y, 0.0), w - dense, atol=1e-6)


def test_a_step_of_the_path_that_loses_is_not_taken():
    # saturated: the stored outputs see no curvature and the plain step is far too long
    R, w, x = smooth()
    w = 40 * w
    learner = InvariantPath(R, 5, "class", 4, 0, damping=1e-3, rate=1e4, iterations=300)
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    task = Task(x, y, x, y, (0, 1, 2, 3))
    learner.start_task(w, task)
    everything = torch.ones(4, dtype=torch.bool)
    learner.memory.store(task, R(w, x[:5]), everything, torch.arange(5))
    rows = torch.arange(5)
    grad = learner.gradient(w, x, y)
    weight = 1e-3 * 1e4 / max(1.0, grad.norm().item())

    def value(u):
        return learner.kept(u, rows) + weight * learner.loss(u, x, y).item()

    values = [value(w)]
    for _ in range(8):
        w = learner.step(w, x, y, 0.0)
        values.append(value(w))
    assert values[1] == values[0]  # refused, and damped
    assert learner.damping > learner.floor
    assert min(values) < values[0]


def recalled(kind, **options):
    """A learner of classes 2 and 3 with five inputs stored of classes 0 and 1."""
    R, w, x = smooth()
    learner = kind(R, 5, "class", 4, 0, replayed=4, **options)
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    learner.start_task(w, Task(x, y, x, y, (0, 1)))
    learner.finish_task(w, Task(x, y, x, y, (0, 1)))
    learner.start_task(w, Task(x, y + 2, x, y + 2, (2, 3)))
    return learner, R, w, x, y + 2


def test_losses_of_the_rivals_are_as_published():
    ce = torch.nn.functional.cross_entropy
    learner, R, w, x, y = recalled(RIVALS.DERPlusPlus, strength=0.7, labels=0.3)
    m = learner.memory
    rows = learner.recall()
    learner.recall = lambda: rows
    a, b = rows[:2], rows[2:]
    gap = (R(w + 0.1, m.x[a]) - m.z[a]).square().mean()
    want = ce(R(w + 0.1, x), y) + 0.7 * gap + 0.3 * ce(R(w + 0.1, m.x[b]), m.y[b])
    assert torch.allclose(learner.loss(w + 0.1, x, y), want)
    learner, R, w, x, y = recalled(RIVALS.ErAce, strength=0.7)
    rows = learner.recall()
    learner.recall = lambda: rows
    z = R(w, x)
    new = ce(z[:, 2:], y - 2)
    both = torch.cat([z[:4], R(w, learner.memory.x[rows])])
    old = ce(both, torch.cat([y[:4], learner.memory.y[rows]]))
    assert torch.allclose(learner.loss(w, x, y), new + 0.7 * old)


def test_fisher_of_elastic_weights():
    # many samples of the model's own labels: the diagonal of the Fisher information
    from geolib.geodesics import FunctionSpace

    R, w, x = smooth()
    many = x.repeat(800, 1)
    y = torch.zeros(len(many), dtype=torch.long)
    learner = RIVALS.EWC(R, 0, "class", 4, 0)
    learner.samples = len(many)
    task = Task(many, y, many, y, (0,))
    learner.start_task(w, task)
    learner.finish_task(w, task)
    fisher, at = learner.springs[0]
    exact = FunctionSpace(R, x).metric(w).dense().diagonal()
    assert torch.equal(at, w)
    assert torch.allclose(fisher, exact, rtol=0.1, atol=0.02 * exact.max().item())


def test_memory_and_restriction():
    memory = Memory()
    task = tasks()[0]
    allowed = torch.ones(10, dtype=torch.bool)
    z = torch.arange(len(task.x), dtype=torch.float64)[:, None].expand(-1, 10)
    learner = Replay(Realization(mlp([64, 10])), 7, "class", 10, 0)
    first, second = (learner.pick(None, task) for learner.finished in ([1], [1, 2]))
    assert len(set(first.tolist())) == 7
    assert not torch.equal(first, second)
    memory.store(task, z[first], allowed, first)
    memory.store(task, z[second], allowed, second)
    assert len(memory) == 14
    rows = memory.z[:, 0].long()
    assert torch.equal(rows, torch.cat([first, second]))
    assert torch.equal(memory.x, task.x[rows])
    assert torch.equal(memory.y, task.y[rows])
    masked = torch.softmax(restrict(torch.zeros(1, 3), torch.tensor([1, 0, 1]) > 0), 1)
    assert masked.tolist() == [[0.5, 0.0, 0.5]]


def test_two_data_sets_as_two_tasks():
    both = COMPARISONS.pair_tasks(digits(), digits(), 10)
    assert both[1].y.min() == 10
    assert both[1].classes == tuple(range(10, 20))


def test_faults():
    net, two = mlp([64, 8, 10]), tasks()
    with pytest.raises(ValueError, match="tasks: expected a Sequence of"):
        learn_sequence(net, [])
    with pytest.raises(ValueError, match="method: expected one of"):
        learn_sequence(net, two, "magic")
    with pytest.raises(ValueError, match="scenario"):
        learn_sequence(net, two, scenario="both")
    with pytest.raises(ValueError, match="needs at least 1 stored"):
        learn_sequence(net, two, "replay", memory=0)
    with pytest.raises(ValueError, match="labels below the module's"):
        learn_sequence(mlp([64, 8, 3]), two)
    with pytest.raises(ValueError, match="gradient_evaluations"):
        learn_sequence(net, two, gradient_evaluations=0)
    with pytest.raises(ValueError, match=r"labels \[11\]"):
        split_tasks(digits(), [[0, 11]])
    with pytest.raises(ValueError, match="in two tasks"):
        split_tasks(digits(), [[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="part"):
        split_tasks(digits(), TWO, "train")
    x, y = two[0].x, two[0].y
    with pytest.raises(ValueError, match="y: expected labels among the task's classes"):
        Task(x, y, x, y, (0,))
    with pytest.raises(ValueError, match="classes: expected numbers from 0 on"):
        Task(x, torch.where(y == 1, -100, y), x, y, (0, 1, -100))
    data = digits()
    ignored = Table(data.x, torch.full_like(data.y, -100), *[data.x, data.y] * 2)
    with pytest.raises(ValueError, match="classes: expected numbers from 0 on"):
        COMPARISONS.pair_tasks(data, ignored, 0)
    with pytest.raises(ValueError, match="finite"):
        Task(x * float("nan"), y, x, y, (0, 1))
    with pytest.raises(ValueError, match="one label per input"):
        Task(x, y[:-1], x, y, (0, 1))


def test_module_is_left_alone():
    net = mlp([64, 8, 10])
    before = Realization(net).theta0.clone()
    learn_sequence(net, tasks(), gradient_evaluations=640)
    assert torch.equal(Realization(net).theta0, before)


def test_progress_is_told_and_outputs_are_never_computed_on_all_inputs(monkeypatch):
    from geolib.geodesics import continual

    monkeypatch.setattr(continual, "PIECE", 40)
    seen, net = [], mlp([64, 12, 10])
    sizes = []
    net.register_forward_hook(lambda _m, args, _z: sizes.append(len(args[0])))
    found = learn_sequence(
        net, tasks(), "replay", memory=20, gradient_evaluations=1500, batch=20,
        callback=lambda i, scores: seen.append((i, scores.tolist())),
    )  # fmt: skip
    assert [i for i, _ in seen] == [0, 1]
    assert seen[0][1] == [found.table[0, 0]]
    assert seen[1][1] == found.table[1].tolist()
    assert max(sizes) <= 20 + 20 < len(tasks()[0].x_test)  # of new and old inputs
