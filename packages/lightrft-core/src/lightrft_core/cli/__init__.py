"""The command line. Light: no command imports torch before it has a checked run file in hand."""
