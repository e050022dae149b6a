"""Everything about one run: command line, folder, checkpoints, monitoring, and several processes."""
