"""The experiments of this chapter."""

from chapter_experiments import chapter_module, experiments

EXPERIMENTS = experiments("naturality")
CONTROLS, DRAWINGS, MINIBATCHES, PROBLEMS, STORED, TOWERS, WIDTHS = (
    chapter_module("naturality", name)
    for name in (
        *("controls", "drawings", "minibatches", "audit_problems"),
        *("stored_audits", "towers", "widths"),
    )
)
