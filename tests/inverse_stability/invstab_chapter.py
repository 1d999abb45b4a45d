"""The experiments of this chapter."""

from chapter_experiments import chapter_module, experiments

EXPERIMENTS = experiments("inverse_stability")
STAIRCASE = chapter_module("inverse_stability", "staircase")
PATHOLOGIES = chapter_module("inverse_stability", "pathologies")
NORMAL_FORM = chapter_module("inverse_stability", "normal_form")
EXTREMAL = chapter_module("inverse_stability", "extremal")
DESCENT = chapter_module("inverse_stability", "descent")
TRAINING = chapter_module("inverse_stability", "shallow_training")
