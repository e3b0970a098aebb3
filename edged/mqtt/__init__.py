"""The broker's side: the daemon's connection and its outbox."""
