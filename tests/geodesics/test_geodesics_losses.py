"""What each baseline minimises, term by term, against the formula written out."""

import pytest
import torch
from geodesics_cases import KNOWN, PRUNERS, digits, smooth, trained, vector
from torch.nn import functional as F

from geolib.geodesics import FunctionSpace, learn_sequence, magnitude_mask, matrices
from geolib.networks import Table, Task, mlp, split_tasks

prune_and_finetune = PRUNERS.prune_and_finetune
optimal_brain_surgeon = PRUNERS.optimal_brain_surgeon

Y = torch.tensor([0, 1, 2, 3, 0, 1, 2])


def learner_of(method, scenario="class", **options):
    """A learner after one task, with five stored inputs if it keeps any."""
    R, w, x = smooth()
    learner = KNOWN[method](R, 5, scenario, 4, 0, **options)
    task = Task(x, Y, x, Y, (0, 1, 2, 3))
    learner.start_task(w, task)
    learner.finish_task(w, task)
    learner.start_task(w, task)
    return learner, R, w, x


def test_elastic_springs_of_all_tasks_add_up():
    learner, R, w, x = learner_of("elastic weights", strength=3.0)
    learner.finish_task(w + 0.1, Task(x, Y, x, Y, (0, 1, 2, 3)))
    u = w + vector(len(w), 1)
    springs = sum((f * (u - at) ** 2).sum() for f, at in learner.springs)
    assert [at[0].item() for _, at in learner.springs] == [w[0], w[0] + 0.1]
    expected = F.cross_entropy(R(u, x), Y) + 1.5 * springs
    assert learner.loss(u, x, Y).item() == pytest.approx(expected.item())


def test_elastic_weights_pay_for_their_fisher():
    R, w, x = smooth()
    learner = KNOWN["elastic weights"](R, 0, "class", 4, 0)
    task = Task(x, Y, x, Y, (0, 1, 2, 3))
    learner.start_task(w, task)
    assert learner.finish_cost(task) == len(x)
    learner.samples = 5
    assert learner.finish_cost(task) == 5


def test_without_forgetting_keeps_the_teacher_of_the_last_task():
    learner, R, w, x = learner_of("without forgetting", strength=0.5)
    u = w + vector(len(w), 1)
    p, q = (torch.softmax(R(v, x) / 2, 1) for v in (w, u))
    kl = (p * (p / q).log()).sum(1).mean()
    expected = F.cross_entropy(R(u, x), Y) + 4 * 0.5 * kl
    assert learner.loss(u, x, Y).item() == pytest.approx(expected.item())
    assert learner.old.tolist() == [0, 1, 2, 3]


def stored(learner, u):
    """The loss on the stored inputs alone, and what it is made of."""
    rows, m = torch.tensor([3, 0, 4]), learner.memory
    z = learner.R(u, m.x[rows])
    return learner.old_loss(z, rows), z, m.z[rows], m.y[rows]


def test_stored_losses_by_hand():
    u = vector(44, 1)
    learner = learner_of("distilled logits")[0]
    found, z, old, _ = stored(learner, u)
    assert found.item() == pytest.approx((z - old).square().mean().item())
    found, z, _, y = stored(learner_of("replay")[0], u)
    assert found.item() == pytest.approx(F.cross_entropy(z, y).item())
    found, z, old, _ = stored(learner_of("penalty path")[0], u)
    p, q = torch.softmax(z, 1), torch.softmax(old, 1)
    expected = -torch.log((p * q).sqrt().sum(1)).sum()
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("method", ["replay", "distilled logits", "penalty path"])
def test_replay_adds_both_parts(method, monkeypatch):
    learner, R, w, x = learner_of(method, strength=0.7)
    u = w + vector(len(w), 1)
    rows = torch.arange(5)
    monkeypatch.setattr(learner, "recall", lambda: rows)
    old = learner.old_loss(R(u, learner.memory.x), rows)
    expected = F.cross_entropy(R(u, x), Y) + 0.7 * old
    assert learner.loss(u, x, Y).item() == pytest.approx(expected.item())


def test_told_tasks_mask_the_heads_in_training_and_scoring():
    first, second = split_tasks(digits(), [[0, 1], [2, 3]])
    R, w = trained(0)
    learner = KNOWN["joint"](R, 0, "task", 10, 0)
    learner.start_task(w, first)
    assert learner.now.nonzero()[:, 0].tolist() == [0, 1]
    learner.finish_task(w, first)
    learner.start_task(w, second)
    z = R(w, learner.x)
    rows = [[0, 1] if c < 2 else [2, 3] for c in learner.y.tolist()]
    kept = torch.stack([zi[r] for zi, r in zip(z, rows, strict=True)])
    expected = F.cross_entropy(kept, learner.y % 2)
    assert learner.new_loss(z, learner.y).item() == pytest.approx(expected.item())
    # an answer outside the task is always the loudest
    net = mlp([64, 4, 10])
    net[-1].bias.data[9] = 1e3
    still = {"method": "fine-tuning", "gradient_evaluations": 1, "lr": 1e-30}
    assert learn_sequence(net, [first], scenario="class", **still).average == 0
    assert learn_sequence(net, [first], scenario="task", **still).average > 0.2


def test_rates_fall_to_zero(monkeypatch):
    learner, _, w, x = learner_of("fine-tuning")
    assert torch.equal(learner.step(w, x, Y, 1.0), w)
    rates = []

    class Watched(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    R, w = trained(0)
    for flat in (False, True):
        prune_and_finetune(R, w, digits(), 0.5, flat=flat, lr=1.0, steps=10, batch=8)
    fallen, level = rates[:10], rates[10:]
    assert fallen == sorted(fallen, reverse=True)
    assert fallen[3] < 0.9
    assert level[:7] == [1.0] * 7
    assert level[9] == pytest.approx(0)


def test_distillation_leaves_the_dense_network_alone():
    R, w = trained(0)
    plan = {"steps": 1, "batch": 16}
    assert torch.allclose(
        prune_and_finetune(R, w, digits(), 0.0, distil=True, **plan).weights, w
    )
    assert not torch.allclose(
        prune_and_finetune(R, w, digits(), 0.0, **plan).weights, w
    )


def test_surgeon_is_the_dense_second_order_step():
    R, w, x = smooth()
    x, mu = x.repeat(2, 1), 1e-2
    data = Table(x, *[torch.zeros(0)] * 5)
    keep = magnitude_mask(w, matrices(R), 0.5)
    J = torch.func.jacrev(FunctionSpace(R, x).at_point)(w)
    K = J[:, keep]
    rhs = K.T @ (J @ (w * ~keep))
    step = torch.linalg.solve(K.T @ K + mu * torch.eye(K.shape[1]), rhs)
    found = optimal_brain_surgeon(R, w, data, 0.5, damping=mu, iterations=300).weights
    assert torch.allclose(found[keep], w[keep] + step, atol=1e-6)


def test_penalty_path_takes_the_published_step():
    R, w, x = smooth()
    data = Table(x, *[torch.zeros(0)] * 5)
    found = PRUNERS.penalty_path(
        R, w, data, 0.5, steps=1, batch=7, eta=0.3, penalty=2.0
    )
    far = w - w * magnitude_mask(w, matrices(R), 0.5)
    # the divergence is least at the start: the first step is the penalty's alone
    end = w - 0.3 * far / far.norm()
    assert torch.allclose(found.points[1], end, atol=1e-6)
    assert torch.allclose(found.weights, end * found.mask, atol=1e-6)
