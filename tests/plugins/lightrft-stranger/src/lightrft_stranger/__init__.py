"""A third party's loss and reward."""
