"""The brain of the daemon: decides everything, does nothing. Events in, effects out; no thread, socket or clock."""
