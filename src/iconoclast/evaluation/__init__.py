"""Evaluation: what an edit does to responses and to the distribution of the next token."""

from iconoclast.evaluation.measure import Evaluator, Scores, measure
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.evaluation.statistics import Count

__all__ = ["Count", "Evaluator", "ResponseRules", "Scores", "measure"]
