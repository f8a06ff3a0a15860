"""Training: regions, steps, runs, and several processes as one."""
