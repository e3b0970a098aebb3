"""Engines' child processes that behave as no worker should; started by `EngineProcess` with the number of a socket."""
