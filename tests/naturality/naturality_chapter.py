"""The experiments of this chapter."""

from chapter_experiments import chapter_module, experiments

EXPERIMENTS = experiments("naturality")
(
    ALGEBRA,
    CONTROLS,
    DRAWINGS,
    NETWORKS,
    MINIBATCHES,
    POPULAR,
    PROBLEMS,
    RULES,
    STORED,
    TOWERS,
    WIDTHS,
) = (
    chapter_module("naturality", name)
    for name in (
        *(
            "algebra",
            "controls",
            "drawings",
            "random_networks",
            "minibatches",
            "popular",
            "audit_problems",
            "natural_rules",
        ),
        *("stored_audits", "towers", "widths"),
    )
)
