"""The second door to the chain: Prefect runs the stages of dvc.yaml. Start reading at bootstrap.py."""
