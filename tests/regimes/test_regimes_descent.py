"""Training rules against torch's optimizers, exact arithmetic and the flow."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from chapter_experiments import chapter_module

from geolib.regimes import (
    Rule,
    Setup,
    SpectralMeasure,
    draw_covariance,
    draw_weights,
    gradient_flow,
    large_data_next,
    mean_field_next,
    predict,
    prepare,
    simulate,
    theory_curves,
)
from geolib.regimes.simulate import draw_data
from geolib.regimes.stepped import stepped_next

STEPS = chapter_module("regimes", "experiments_steps")
SOLVED = ("large-data", "mean-field", "narrow", "small-data")
RULES = (
    Rule(0.05),
    Rule(0.03, momentum=0.8),
    Rule(0.05, decay=0.3),
    Rule(0.05, noise=0.6),
    Rule(0.02, momentum=0.5, decay=0.1, noise=0.4),
)


@pytest.mark.parametrize("rule", RULES)
def test_the_steps_are_those_of_torch_sgd(rule):
    """The loss by autograd, the step by torch.optim.SGD, on the samples themselves."""
    setup, steps = Setup(12, 9, 20, 0.05), 25
    X, W0 = draw_data(setup, 3), draw_weights(setup, 3)
    x, W = torch.tensor(X), torch.tensor(W0, requires_grad=True)
    options = {"lr": rule.lr, "momentum": rule.momentum, "weight_decay": rule.decay}
    optimizer, losses = torch.optim.SGD([W], **options), []
    for _ in range(steps + 1):
        A = W.T @ W
        plain = ((x - A @ x) ** 2).sum() / 2 / setup.n
        losses.append(plain.item())
        loss = plain + rule.noise**2 * (A**2).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    times = np.arange(steps + 1) * rule.stride
    found = gradient_flow(W0, X, times, rule=rule)
    assert found.train[0] == pytest.approx(losses, rel=1e-10)
    other = simulate(setup, times, seeds=[3], rule=rule, form="covariance")
    assert other.train[0] == pytest.approx(losses, rel=1e-9)


@pytest.mark.slow_for("rule2-*", "rule3-*", "rule4-*")
@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("rule", RULES)
def test_a_face_is_met_by_a_network_deep_in_it(name, rule):
    setup = {
        "large-data": Setup(80, 60, 80_000, 0.8 / 80),
        "mean-field": Setup(40, 20_000, 50, 0.3 / 20_000),
        "narrow": Setup(600, 2, 800, 0.5 / 600),
        "small-data": Setup(240, 200, 2, 0.6 / 240),
    }[name]
    if name == "small-data":
        rule = replace(rule, lr=rule.lr / setup.c, decay=rule.decay * setup.c)
        if rule.noise:
            rule = replace(rule, noise=rule.noise * setup.c**0.5)
    t = rule.grid(np.linspace(0, 2 / max(1, setup.c), 6))
    W = draw_weights(setup, 0)
    if name == "narrow":  # the length of two rows has a scatter of its own
        setup = replace(setup, sigma2=(W**2).mean())
    theory = theory_curves(name, t, setup, rule=rule)
    if setup.h > setup.d:
        W = np.linalg.qr(W, mode="r")
    data = draw_data(setup, 0) if setup.n < setup.d else draw_covariance(setup, 0)
    run = gradient_flow(W, data, t, covariance=setup.n >= setup.d, rule=rule)
    for got, curve in zip((run.train[0], run.population[0]), theory, strict=True):
        moved, told = got / setup.d, curve
        moved, told = moved - moved[0], told - told[0]
        scale = np.abs(moved).max()
        assert (
            np.abs(moved - told).max()
            < (0.15 if name == "small-data" else 0.08) * scale
        )


@pytest.mark.parametrize("name", SOLVED)
def test_small_steps_are_the_flow(name):
    setup = Setup(50, 40, 60, 0.7 / 50)
    t = np.array([0.0, 0.5, 1.0])
    flow = theory_curves(name, t, setup)
    off = []
    for rule in (Rule(0.02), Rule(0.01)):
        steps = theory_curves(name, t, setup, rule=rule)
        off.append(max(np.abs(a - b).max() for a, b in zip(flow, steps, strict=True)))
    assert 1e-6 < off[1] < 0.6 * off[0] < 0.02


def test_one_step_on_each_face_is_the_polynomial_of_the_face():
    """Large data: a is multiplied by (1 - 2 lr (a - 1))^2, averaged exactly over the law."""
    setup, lr = Setup(64, 32, 64, 0.5 / 64), Fraction(1, 10)
    rho, kappa = Fraction(1, 4), Fraction(1, 2)
    power = {0: 1, 1: rho, 2: rho**2 + rho * kappa}
    power[3] = rho**3 + 3 * rho**2 * kappa + rho * kappa**2
    power[4] = rho**4 + 6 * rho**3 * kappa + 6 * rho**2 * kappa**2 + rho * kappa**3
    power[5] = sum(
        n * rho**k * kappa ** (5 - k) for k, n in enumerate((1, 10, 20, 10, 1), 1)
    )
    power[6] = sum(
        n * rho**k * kappa ** (6 - k) for k, n in enumerate((1, 15, 50, 50, 15, 1), 1)
    )
    factor = np.polynomial.Polynomial([1 + 2 * lr, -2 * lr])
    after = np.polynomial.Polynomial([0, 1]) * factor**2
    loss = (1 - after) ** 2 * Fraction(1, 2)
    exact = sum(f * power[k] for k, f in enumerate(loss.coef))
    t = np.array([0.0, 0.1])
    got = theory_curves("large-data", t, setup, rule=Rule(0.1)).train[1]
    assert got == pytest.approx(float(exact), rel=1e-12)


def test_a_run_that_diverges_has_infinite_losses():
    setup, rule = Setup(20, 20, 200, 0.05), Rule(0.9)
    run = simulate(setup, np.arange(60) * 0.9, rule=rule)
    assert np.isfinite(run.train[0, 0])
    assert np.isinf(run.train[0, -1])
    with pytest.raises(ValueError, match=r"^rule: copies diverge"):
        predict(setup, np.arange(60) * 0.9, rule=rule, budget=1e8)


@pytest.mark.parametrize("rule", [Rule(0.1), Rule(0.05, momentum=0.5, decay=0.05)])
def test_predictions_with_a_rule_hold_for_runs(rule):
    answer = predict(Setup(40, 30, 50, 0.5 / 40), rule=rule, budget=1e9)
    assert answer.rule is rule
    assert answer.check(8).inside >= 7 / 8
    x = 3 * np.random.default_rng(0).standard_normal((10, 40))
    own = predict(prepare(x), h=5, sigma2=0.02, rule=rule, budget=3e8).in_data_units()
    X = x - x.mean(1, keepdims=True)
    W = np.random.default_rng(1).standard_normal((5, 10)) * 0.02**0.5
    run = gradient_flow(W, X, own.rule.grid(own.times), rule=own.rule)
    assert (np.abs(run.train[0] - own.train) < own.train_bar * (1 + 1e-9)).mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"lr": 0.0}, r"^lr: "),
        ({"lr": 0.1, "momentum": 1.0}, r"^momentum: "),
        ({"lr": 0.1, "decay": -1.0}, r"^decay: "),
        ({"lr": 0.1, "noise": np.nan}, r"^noise: "),
    ],
)
def test_rules_refuse_nonsense(arguments, match):
    with pytest.raises(ValueError, match=match):
        Rule(**arguments)


def test_faces_without_steps_and_times_between_steps():
    setup = Setup(8, 8, 8, 0.1)
    with pytest.raises(ValueError, match=r"^name: "):
        theory_curves("free", [0.0], setup, rule=Rule(0.1))
    with pytest.raises(ValueError, match="whole numbers of steps"):
        simulate(setup, [0.15], rule=Rule(0.1))
    with pytest.raises(ValueError, match=r"^form: "):
        simulate(setup, [0.1], rule=Rule(0.1), form="gram")


def test_the_noise_of_fresh_samples_is_that_of_one_step():
    """Second order in the step, d of it times as large as without noise, by draws."""
    d, h, step, draws = 80, 54, 1e-4, 800
    W = draw_weights(Setup(d, h, d, 0.9 / d), 0)
    rng, eye = np.random.default_rng(1), np.eye(d)

    def bend(S):
        A = W.T @ W
        push = -W @ ((A - eye) @ S + S @ (A - eye))
        losses = []
        for sign in (1, 0, -1):
            V = W + sign * step * push
            losses.append(((V.T @ V - eye) ** 2).sum() / 2 / d)
        return (losses[0] + losses[2] - 2 * losses[1]) / 2 / step**2

    x = rng.standard_normal((draws, d))
    found = (np.mean([bend(np.outer(v, v)) for v in x]) - bend(eye)) / d
    law = SpectralMeasure.of_eigenvalues(np.linalg.eigvalsh(W.T @ W))
    t = 1e-5
    told = STEPS.online_next(np.array([t]), law)[0] / t
    assert found == pytest.approx(told, rel=0.1)


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ((100, 100, 100), Rule(0.08, momentum=0.5, decay=0.1, noise=0.3)),
        ((120, 60, 30), Rule(0.02)),
        ((100, 50, 100), Rule(0.08)),
    ],
)
def test_the_graph_takes_steps(sizes, rule):
    """In the interior, at each kind of root, against ten networks."""
    setup = Setup(*sizes, 0.5 / sizes[0])
    t = rule.grid(np.linspace(0, 1.5 / max(1, setup.c), 7))
    graph = theory_curves("interior", t, setup, rule=rule, depth=5)
    run = simulate(setup, t, seeds=10, rule=rule)
    for ours, theirs in zip(graph, (run.train, run.population), strict=True):
        assert np.abs(ours - theirs.mean(0) / setup.d).max() < 0.05 * ours[0]


def test_short_steps_on_the_graph_are_its_flow():
    setup, rule = Setup(40, 60, 40, 0.02), Rule(5e-4)
    t = np.array([0.0, 0.25, 0.5])
    steps, flow = (
        theory_curves("interior", t, setup, rule=r, depth=4) for r in (rule, None)
    )
    assert steps.train == pytest.approx(flow.train, rel=3e-3)
    assert steps.population == pytest.approx(flow.population, rel=3e-3)


@pytest.mark.parametrize(
    ("name", "sizes", "ode"),
    [
        (
            "large-data",
            (40, 30, 320, 0.7 / 40),
            lambda t, s: large_data_next(t, *s[:2]),
        ),
        (
            "mean-field",
            (64, 512, 96, 0.3 / 512),
            lambda t, s: mean_field_next(t, s[0], s[2]),
        ),
    ],
)
def test_pairs_give_the_next_order_of_the_flow_and_of_steps(name, sizes, ode):
    setup = Setup(*sizes)
    small = setup.c if name == "large-data" else 1 / setup.eta
    off = []
    for lr in (4e-3, 2e-3):  # towards the flow's differential equations
        t = Rule(lr).grid(np.array([0.0, 0.4, 0.8]))
        pairs = stepped_next(name, t, setup, Rule(lr))
        flow = ode(t, setup.ratios)
        off.append(
            max(
                abs(y - small * z).max() / abs(small * z).max()
                for y, z in zip(pairs, flow, strict=True)
            )
        )
    assert off[0] < 0.02
    assert off[1] == pytest.approx(off[0] / 2, rel=0.2)
    for rule in (Rule(0.05, momentum=0.8), Rule(0.1, decay=0.3, noise=0.4)):
        t = rule.grid(np.linspace(0, 2, 6))
        run = simulate(setup, t, seeds=16, rule=rule)
        change = [y.mean(0) / setup.d for y in (run.train, run.population)]
        errors = []
        for label in (name, f"{name} + next"):
            told = theory_curves(label, t, setup, rule=rule)
            errors.append(
                max(
                    abs((y - y[0]) - (z - z[0])).max() / abs(y - y[0]).max()
                    for y, z in zip(change, told, strict=True)
                )
            )
        assert errors[1] < 0.6 * errors[0]


def test_a_next_order_that_diverges_is_infinite():
    setup, t = Setup(20, 20, 400, 0.1), np.arange(60) * 1.5
    step = stepped_next("large-data", t, setup, Rule(1.5))
    assert np.isinf(step.train[-1])
    assert not np.isnan(np.stack(step)).any()


def test_predict_names_a_next_order_with_a_rule():
    rule = Rule(0.1, momentum=0.3)
    answer = predict(Setup(40, 600, 60, 0.3 / 600), rule=rule, budget=1e9)
    assert answer.theory == "mean-field + next"
    assert answer.check(8).inside >= 0.85
