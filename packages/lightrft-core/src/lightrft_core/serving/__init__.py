"""An engine behind HTTP, in the words of OpenAI's routes, and behind a terminal. Free of torch, like all of core."""
