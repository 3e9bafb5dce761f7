"""Search: Optuna proposes edits, the evaluator measures them, the Pareto front is what is left."""
