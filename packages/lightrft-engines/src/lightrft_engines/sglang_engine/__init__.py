"""The engine `sglang`: in this process, or as a server that is started here or found at an address."""
