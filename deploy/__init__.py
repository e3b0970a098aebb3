"""Set-up, demo and the stack behind them; run from a clone (`python -m deploy.demo`), not part of the package."""
