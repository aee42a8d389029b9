"""Ablations: arms over params.yaml (arms.py), their DVC stages (graph.py), a clone for each seed (run.py), the tables (page.py)."""
