"""`edged tune`: tries settings of a model on this machine, and finds the fastest."""
