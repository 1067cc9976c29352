"""LMDeploy: its PyTorch engine and TurboMind."""
