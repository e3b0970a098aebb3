"""What is measured, one scenario a module: `measure(scene)` gives an `Outcome`."""
