"""What engines with a process or a module of their own share: siblings, buckets of weights, servers, HTTP."""
