"""The benchmark suite and the comparison of servers: see perf/README.md."""
