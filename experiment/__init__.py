"""One run: its command line, its folder, how it goes on, what is watched, and several processes that share it."""
