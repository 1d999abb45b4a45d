"""The experiments of this chapter."""

from chapter_experiments import experiments

EXPERIMENTS = experiments("inverse_stability")
