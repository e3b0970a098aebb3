"""What operators see: logs, and what systemd is told."""
