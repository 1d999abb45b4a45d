"""The experiments of this chapter."""

from chapter_experiments import chapter_module, experiments

EXPERIMENTS = experiments("naturality")
DRAWINGS, MINIBATCHES, STORED, TOWERS, WIDTHS = (
    chapter_module("naturality", name)
    for name in ("drawings", "minibatches", "stored_audits", "towers", "widths")
)
