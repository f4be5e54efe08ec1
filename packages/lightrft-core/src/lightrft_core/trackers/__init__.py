"""Where metrics go: the console, a file, wandb, tensorboard. Only rank 0 speaks."""
