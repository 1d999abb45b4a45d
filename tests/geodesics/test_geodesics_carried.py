"""Our variants of continual learning: against dense formulas and greedy searches."""

from types import SimpleNamespace

import pytest
import torch
from geodesics_cases import VARIANTS, digits, smooth, trained, vector
from torch.nn import functional as F

from geolib.geodesics import learn_sequence
from geolib.geodesics.learners import HerdedDER, choose_inputs
from geolib.networks import Task, mlp, split_tasks

CarriedLoss = VARIANTS.CarriedLoss


def carried(R, w, x, scenario="class", **options):
    """A learner with five stored inputs whose outputs have drifted."""
    learner = CarriedLoss(R, 5, scenario, 4, 0, iterations=300, **options)
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    task = Task(x, y, x, y, (0, 1, 2, 3))
    learner.start_task(w, task)
    everything = torch.ones(4, dtype=torch.bool)
    learner.memory.store(task, R(w, x[:5]) + vector(4, 1), everything, torch.arange(5))
    return learner, y


def test_carried_step_against_the_dense_formula():
    R, w, x = smooth()
    learner, y = carried(R, w, x, damping=0.3, carry=2.0, labels=0.5)
    m = learner.memory

    def objective(u):
        z = R(u, m.x)
        gap = (z - m.z) - (z - m.z).mean(1, keepdim=True)
        old = 0.5 * gap.square().sum(1).mean() + F.cross_entropy(z, m.y)
        return old + 2 * F.cross_entropy(R(u, x), y)

    def gauss_newton(inputs, curve):
        J = torch.func.jacrev(lambda u: R(u, inputs))(w)
        return torch.einsum("nip,nij,njq->pq", J, curve, J) / len(inputs)

    def softmax_hessian(inputs):
        p = torch.softmax(R(w, inputs), 1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    centre = (torch.eye(4, dtype=torch.float64) - 0.25).expand(5, 4, 4)
    G = gauss_newton(m.x, centre + softmax_hessian(m.x))
    G = G + 2 * gauss_newton(x, softmax_hessian(x)) + 0.3 * torch.eye(len(w))
    dense = torch.linalg.solve(G, torch.func.grad(objective)(w))
    assert learner.total(w, x, y, torch.arange(5)) == pytest.approx(objective(w).item())
    assert torch.allclose(learner.step(w, x, y, 0.0), w - dense, atol=1e-5)


def test_a_step_that_does_not_pay_is_not_taken():
    # saturated: the softmax has no curvature left and the plain step is far too long
    R, w, x = smooth()
    w = 40 * w
    learner, y = carried(R, w, x, damping=1e-3, carry=10.0)
    rows, floor = torch.arange(5), learner.damping
    values = [learner.total(w, x, y, rows)]
    for _ in range(6):
        w = learner.step(w, x, y, 0.0)
        values.append(learner.total(w, x, y, rows))
    assert values == sorted(values, reverse=True)
    assert values[1] == values[0]  # refused
    assert learner.damping > floor
    learner.start_task(w, Task(x, y, x, y, (0, 1, 2, 3)))
    assert learner.damping == floor


def test_carried_loss_learns_where_the_task_is_told():
    # without the trial of each step this protocol ended near chance
    tasks = split_tasks(digits(), [[0, 1], [2, 3], [4, 5]])
    plan = {
        "scenario": "task",
        "gradient_evaluations": 6400,
        "replayed": 20,
        "memory": 20,
    }
    found = learn_sequence(mlp([64, 16, 10]), tasks, CarriedLoss, **plan)
    assert found.converged
    assert found.average > 0.95


def test_mean_rule_is_the_greedy_search():
    J = vector(25 * 6, 3).reshape(25, 6)
    chosen: list[int] = []
    for _ in range(8):
        free = [i for i in range(25) if i not in chosen]
        miss = [(J[[*chosen, i]].mean(0) - J.mean(0)).norm() for i in free]
        chosen.append(free[int(torch.stack(miss).argmin())])
    assert choose_inputs(J, 8).tolist() == chosen
    assert len(set(choose_inputs(J, 99).tolist())) == 25
    with pytest.raises(ValueError, match="rule: expected one of"):
        HerdedDER(trained(0)[0], 6, "class", 10, 0, rule="near")


def test_chosen_inputs_are_rows_of_the_task_and_paid_for():
    R, w = trained(0)
    task = split_tasks(digits(), [[0, 1]])[0]
    learner = HerdedDER(R, 6, "class", 10, 0, candidates=50)
    learner.start_task(w, task)
    rows = learner.pick(w, task)
    assert learner.finish_cost(task) == 50
    assert len(set(rows.tolist())) == 6
    assert {int(c) for c in task.y[rows]} == {0, 1}


def test_directions_of_a_large_network_are_added_up_before_they_are_compared(
    monkeypatch,
):
    from geolib.geodesics import learners

    class Positive:  # sums without signs would make all directions alike
        p = 4000

        def linearize(self, w, x):
            g = vector(self.p, int(1e4 * x.square().sum()) % 9973).abs()
            outputs = torch.zeros(1, 10, dtype=torch.float64)
            return SimpleNamespace(outputs=outputs, vjp=lambda u: g)

    R, w = trained(0)
    task = split_tasks(digits(), [[0, 1]])[0]
    learner = HerdedDER(R, 20, "class", 10, 0, candidates=60)
    learner.start_task(w, task)
    learner.R, seen = Positive(), []

    def caught(J, count):
        seen.append(J)
        return choose_inputs(J, count)

    monkeypatch.setattr(learners, "choose_inputs", caught)
    for most in (1000, 4000):
        monkeypatch.setattr(learners, "SKETCH", most)
        assert len(set(learner.pick(w, task).tolist())) == 20
    short, full = seen
    assert short.shape == (60, 1000)
    assert full.shape == (60, 4000)
    # products of directions are kept, up to what 1000 random sums can tell
    size = full.norm(dim=1)
    gap = (short @ short.T - full @ full.T) / size / size[:, None]
    assert gap.abs().mean() < 0.1
