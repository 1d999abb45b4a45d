"""Derivatives of a module itself, by moving one weight at a time: the slow reference."""

import torch


@torch.no_grad()
def nudged(module, answer, eps):
    """For each trained weight the answers just above and just below its value."""
    for p in module.parameters():
        flat = p.view(-1)
        for k in range(len(flat) if p.requires_grad else 0):
            old, ends = flat[k].item(), []
            for t in (old + eps, old - eps):
                flat[k] = t
                ends.append(answer())
            flat[k] = old
            yield ends


@torch.no_grad()
def jacobian(module, answer, eps=1e-6):
    """Central differences of the answers, the weights as a last axis."""
    ends = nudged(module, answer, eps)
    return torch.stack([(up - down) / (2 * eps) for up, down in ends], -1)


@torch.no_grad()
def relative(a, b):
    """The size of the difference over that of b."""
    return float((a - b).norm() / b.norm())
