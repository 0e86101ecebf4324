"""What can go wrong outside of seqagg, done on purpose: damaged files, killed processes, leaks."""
