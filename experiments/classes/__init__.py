"""Learning of classes that arrive in tasks, one after another."""
