"""The command `gridscore`: one file a command group; this one puts them together and prints errors for people."""
