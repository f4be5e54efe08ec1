"""Memory of a run before it starts: counted, not guessed, and without weights or a GPU."""
