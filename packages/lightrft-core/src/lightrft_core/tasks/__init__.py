"""Where prompts come from: rows in memory, files on disk, and what every task shares."""
